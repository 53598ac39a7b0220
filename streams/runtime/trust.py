"""The keys and the signed decisions that a process trusts.

**Keys** are Ed25519 keys on disk. A private key is a PEM file (PKCS 8) with mode 0600, its public
key a PEM file beside it with the suffix `.pub`.

The signing keys in a state folder.

    <state>/keys/signing.pem   0600 the current signing key
    <state>/keys/signing.pub        its public key
    <state>/keys/<id>.pem      0600 an earlier signing key, or one created for later
    <state>/keys/<id>.pub           its public key, or that of a key announced to devices

To switch to another key:

1. store the current key under its id
2. store the public half of the other key under its id
3. replace signing.pem (temporary, fsync, rename)
4. replace signing.pub the same way

signing.pem is complete at every moment. After a crash in 1 or 2 the old key is in use; after 3 the
new key signs, and signing.pub is the old one's, which devices still trust. A repeated call does the
rest.

**Acceptance.** A device stores the last accepted decision's number, digest and keys, and the
retired keys, beside its slots. The file is replaced atomically before the decision takes effect. A
decision is accepted if

1. a trusted key signed it: one that the process was started with or that an accepted decision
   named, and that is not revoked
2. it is about this task and its version
3. its number is above the last one's; the direct successor must also name the last one as `prev`
4. every key that was revoked is still revoked in it, whoever signed it

so old decisions cannot be replayed, and a rewritten history does not continue at the next number. A
gap is allowed, because a device may miss decisions; that no history is rewritten is up to who holds
a key (federation.registry.restoring). Each version of the task has its history, and so its file,
`accepted-v<version>.json`. What the files of the other versions say of keys counts as well: a key
that they name is trusted, one that they revoke is not. On a full disk the state is kept in memory,
and a restart may accept the decision again. Workers always keep it in memory: they read `releases`
from the beginning.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from streams.contract.artifact import key_id, public_keys
from streams.contract.decisions import Decision, KeyId, Release, Trust
from streams.contract.documents import Count, Digest, Document
from streams.contract.errors import ArtifactError, MalformedRecord, UsageError
from streams.contract.task import Task
from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.files import write_atomic


def create_key(path: Path) -> Ed25519PrivateKey:
    """Create a key pair; an existing key is loaded, never replaced."""
    if path.exists():
        return load_private_key(path)
    key = Ed25519PrivateKey.generate()
    write_public_key(key.public_key(), path.with_suffix(".pub"))
    write_private_key(key, path)
    return key


def write_private_key(key: Ed25519PrivateKey | EllipticCurvePrivateKey, path: Path) -> None:
    """Write the key to `path` (0600), replacing any file."""
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_atomic(path, pem, mode=0o600)


def write_public_key(key: Ed25519PublicKey, path: Path) -> None:
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_atomic(path, pem)


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Read the signing key at `path`; raise UsageError if others can read it."""
    try:
        if path.stat().st_mode & 0o077:
            raise UsageError(f"signing key {path} can be read by others: chmod 600 it")
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise UsageError(
            f"there is no signing key {path}: `tidewheel prepare TASK` makes one, or name another "
            "state folder with --state"
        ) from None
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise UsageError(f"cannot read the signing key {path}: {exc}") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is not an ed25519 key: make one with `tidewheel up` or openssl")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key that this process will trust."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(
            f"the trusted key {path} does not exist: create it with `tidewheel prepare TASK`, or "
            "pass another --state or --trust"
        ) from None
    except (OSError, ValueError, UnsupportedAlgorithm) as exc:
        raise UsageError(f"cannot read the trusted key {path}: {exc}") from exc
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} is not an ed25519 public key")
    return key


# --- the signing keys of a state folder -----------------------------------------------------------

SIGNING = "signing"


@dataclass
class StoredKey:
    """One key of the folder."""

    id: str
    private: bool = False
    in_use: bool = False


def keep_public(keys: Path, public: Ed25519PublicKey) -> Path:
    """Store a public key under its id; return its path."""
    path = keys / f"{key_id(public)}.pub"
    if not path.exists():
        write_public_key(public, path)
    return path


def private_key(keys: Path, wanted: str) -> Ed25519PrivateKey:
    """Return the key of that id; raise UsageError if its private key is not in the folder."""
    for path in sorted(keys.glob("*.pem")):
        if key_id((key := load_private_key(path)).public_key()) == wanted:
            return key
    raise UsageError(f"no private key {wanted} in {keys}: `tidewheel keys list` shows the keys")


def take_over(keys: Path, key: Ed25519PrivateKey, failpoint: Failpoint = unarmed) -> None:
    """Switch to `key` as the signing key: steps 1 to 4."""
    signing = keys / f"{SIGNING}.pem"
    if (public := signing.with_suffix(".pub")).exists():  # the private key may be lost
        keep_public(keys, load_public_key(public))
    if signing.exists():
        before = load_private_key(signing)
        keep_public(keys, before.public_key())
        if not (kept := keys / f"{key_id(before.public_key())}.pem").exists():
            write_private_key(before, kept)
        failpoint("keys-step-1")
    keep_public(keys, key.public_key())
    failpoint("keys-step-2")
    write_private_key(key, signing)
    failpoint("keys-step-3")
    write_public_key(key.public_key(), public)
    failpoint("keys-step-4")


def kept_keys(keys: Path) -> list[StoredKey]:
    """Return all keys of the folder, by id."""
    found: dict[str, StoredKey] = {}
    for path in sorted([*keys.glob("*.pub"), *keys.glob("*.pem")]):
        private = path.suffix == ".pem"
        public = load_private_key(path).public_key() if private else load_public_key(path)
        kept = found.setdefault(key_id(public), StoredKey(key_id(public)))
        kept.private |= private
        kept.in_use |= private and path.stem == SIGNING
    return [found[name] for name in sorted(found)]


log = logging.getLogger(__name__)


class Accepted(Document):
    """The file of a task version; `seq` is 0 before the first decision."""

    seq: Count = 0
    digest: str = ""
    keys: dict[KeyId, Digest] = {}
    revoked: list[KeyId] = []
    past: dict[KeyId, Digest] = {}  # retired keys


def accepted_file(folder: Path, version: int) -> Path:
    return folder / f"accepted-v{version}.json"


def reset(folder: Path) -> None:
    """Let a stopped device accept decisions of another history; keeps its trusted keys."""
    for path in folder.glob("accepted-v*.json"):
        try:
            before = Accepted.decode(path.read_bytes())
        except (OSError, MalformedRecord):
            path.unlink(missing_ok=True)
        else:
            write_atomic(path, before.replace(seq=0, digest="").encode())


class Acceptance:
    """The decisions that one process accepts; it was started with the `initial` keys. folder: of
    the files; None: in memory alone."""

    def __init__(
        self, folder: Path | None, task: Task, initial: Sequence[Ed25519PublicKey]
    ) -> None:
        self._task = task
        self._path = None if folder is None else accepted_file(folder, task.version)
        self._state = Accepted() if self._path is None else _read(self._path)
        self._initial = {key_id(key): key for key in initial}
        self._barred: frozenset[str] = frozenset()  # of other versions: this one need not repeat it
        for path in folder.glob("accepted-v*.json") if folder is not None else ():
            if path != self._path:
                other = _read(path)
                self._initial |= public_keys(other.keys)
                self._barred |= {*other.revoked}

    @property
    def seq(self) -> int:
        """The number of the last accepted decision; 0 before the first."""
        return self._state.seq

    @property
    def trusted(self) -> list[Ed25519PublicKey]:
        """The keys that are trusted now."""
        return list(self._trust().active.values())

    @property
    def known(self) -> list[Ed25519PublicKey]:
        """Trusted, retired and revoked keys: an installed version stays valid after a rotation."""
        return list(self._trust().known.values())

    def accept(self, release: Release) -> Decision:
        """Return the decision, which now holds; raise ArtifactError if it is not accepted."""
        before, trust = self._state, self._trust()
        decision = release.verified(trust.known, self._task.name)
        if decision.task_version != self._task.version:
            raise ArtifactError(
                "task",
                f"the decision is about version {decision.task_version} of {self._task.name}, "
                f"not {self._task.version}",
            )
        if release.digest == before.digest:
            return decision
        if decision.seq <= before.seq:
            raise ArtifactError(
                "replayed", f"decision {decision.seq} comes after decision {before.seq}"
            )
        if before.seq and decision.seq == before.seq + 1 and decision.prev != before.digest:
            raise ArtifactError(
                "history",
                f"decision {decision.seq} does not follow decision {before.seq}, the last one here",
            )
        if not before.seq and decision.key not in trust.revoked:
            trust = replace(trust, revoked=frozenset())  # a wiped device follows another chain
        trust.after(decision)
        desired, earlier = decision.standing, {**before.past, **before.keys}
        changed = {
            "seq": decision.seq,
            "digest": release.digest,
            "keys": desired.keys,
            "revoked": desired.revoked,
            "past": {n: raw for n, raw in earlier.items() if n not in desired.keys},
        }
        self._remember(before.replace(**changed))
        return decision

    def _trust(self) -> Trust:
        state = self._state
        named, past = public_keys(state.keys), public_keys(state.past)
        return Trust(
            {**past, **self._initial, **named},
            frozenset(self._initial) - self._barred,
            frozenset(named) - self._barred,
            frozenset(state.revoked),
        )

    def _remember(self, state: Accepted) -> None:
        self._state = state
        if self._path is None:
            return
        try:
            write_atomic(self._path, state.encode())
        except OSError as exc:
            log.warning("%s was not written, a restart may accept it again: %s", self._path, exc)


def _read(path: Path) -> Accepted:
    try:
        return Accepted.decode(path.read_bytes())
    except FileNotFoundError:
        pass
    except (OSError, MalformedRecord) as exc:
        log.warning("%s is ignored: %s", path, exc)
    return Accepted()
