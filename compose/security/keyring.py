"""The keys in a state folder: what decisions are signed with, and what has been.

    <state>/keys/signing.pem   0600 the key that signs now
    <state>/keys/signing.pub        its public half
    <state>/keys/<id>.pem      0600 one that has signed before
    <state>/keys/<id>.pub           one that devices were told of, or that has signed before
    <state>/keys/<name>.pem    0600 one that was made for later; <name>.pub its public half

Another key takes over:

1. keep the one in use under its id
2. keep the public half of the other one under its id
3. replace signing.pem (temporary, fsync, rename)
4. replace signing.pub the same way

There is a whole signing.pem at every moment. A crash after 1 or 2 leaves the old key in use; after
3 the new one signs, and signing.pub is the old one's, which devices trust still: called again, the
rest is done.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from streams.contract.errors import UsageError
from streams.contract.signing import key_id
from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.key_files import (
    load_private_key,
    load_public_key,
    write_private_key,
    write_public_key,
)

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
SIGNING = "signing"


@dataclass
class StoredKey:
    """One key of the folder: the names of its files, without their endings."""

    id: str
    names: list[str] = field(default_factory=list)
    private: bool = False
    in_use: bool = False


def make(keys: Path, name: str | None) -> tuple[str, Path]:
    """A new pair: its id and where the private half lies. Without a name it has its id's."""
    if name is not None and (name == SIGNING or not NAME.fullmatch(name)):
        raise UsageError(
            f"key name {name!r}: lower-case letters, digits and '-' only, at most 41, not "
            f"'{SIGNING}'"
        )
    key = Ed25519PrivateKey.generate()
    made = key_id(key.public_key())
    path = keys / f"{name or made}.pem"
    for taken in (path, path.with_suffix(".pub")):
        if taken.exists():
            raise UsageError(f"there is a key in {taken} already: name another, or remove it")
    write_public_key(key.public_key(), path.with_suffix(".pub"))
    write_private_key(key, path)
    return made, path


def keep_public(keys: Path, public: Ed25519PublicKey) -> Path:
    """Keep a public key under its id; where."""
    path = keys / f"{key_id(public)}.pub"
    if not path.exists():
        write_public_key(public, path)
    return path


def private_key(keys: Path, wanted: str) -> Ed25519PrivateKey:
    """The key of that name or id; UsageError where its private half is not here."""
    if NAME.fullmatch(wanted):
        if (path := keys / f"{wanted}.pem").exists():
            return load_private_key(path)
        for path in sorted(keys.glob("*.pem")):
            if key_id((key := load_private_key(path)).public_key()) == wanted:
                return key
    raise UsageError(f"no private key {wanted} in {keys}: `tidewheel keys list` has what is there")


def take_over(keys: Path, key: Ed25519PrivateKey, failpoint: Failpoint = unarmed) -> None:
    """`key` signs from now on: steps 1 to 4."""
    signing = keys / f"{SIGNING}.pem"
    if (public := signing.with_suffix(".pub")).exists():  # also where the other half is lost
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
    """All of the folder, by id."""
    found: dict[str, StoredKey] = {}
    for path in sorted([*keys.glob("*.pub"), *keys.glob("*.pem")]):
        private = path.suffix == ".pem"
        public = load_private_key(path).public_key() if private else load_public_key(path)
        kept = found.setdefault(key_id(public), StoredKey(key_id(public)))
        if path.stem not in kept.names:
            kept.names.append(path.stem)
        kept.private |= private
        kept.in_use |= private and path.stem == SIGNING
    return [found[name] for name in sorted(found)]
