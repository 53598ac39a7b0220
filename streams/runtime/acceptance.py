"""Acceptance of signed decisions by a device or worker, and the keys that it trusts.

A device stores the last accepted decision's number, digest and keys, and the retired keys, beside
its slots. The file is replaced atomically before the decision takes effect. A decision is accepted
if

1. a trusted key signed it: one that the process was started with or that an accepted decision
   named, and that is not revoked
2. it is about this task and its version
3. its number is above the last one's; the direct successor must also name the last one as `prev`
4. every key that was revoked is still revoked in it, whoever signed it

so old decisions cannot be replayed, and a rewritten history cannot be continued. Each version of
the task has its history, and so its file, `accepted-v<version>.json`. What the files of the other
versions say of keys counts as well: a key that they name is trusted, one that they revoke is not.
On a full disk the state is kept in memory, and a restart may accept the decision again. Workers
always keep it in memory: they read `releases` from the beginning.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from streams.contract.decisions import Decision, KeyId, Release, Trust
from streams.contract.documents import Count, Digest, Document
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.signing import key_id, public_keys
from streams.contract.task import Task
from streams.runtime.disk import write_atomic

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
