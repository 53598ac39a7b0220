"""Ed25519 keys on disk.

A private key is a PEM file (PKCS 8) with mode 0600, its public key a PEM file beside it with the
suffix `.pub`.

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
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from streams.contract.errors import UsageError
from streams.contract.signing import key_id
from streams.runtime.disk import write_atomic
from streams.runtime.failpoints import Failpoint, unarmed


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
