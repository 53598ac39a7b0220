"""The key that authenticates a device's SuperNode to the SuperLink: ECDSA on P-384, in OpenSSH's
format.

`ssh-keygen -t ecdsa -b 384` creates the same two files. Flower also accepts P-256 and P-521.
"""

import base64
import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from streams.contract.errors import UsageError
from streams.runtime.disk import write_atomic

KINDS = ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")


def make_key(path: Path) -> str:
    """Create a private key (0600) at `path` and its public key at `path` plus `.pub`; return the
    public key as text."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    write_atomic(path, private, mode=0o600)
    write_atomic(public_path(path), public + b"\n")
    return public.decode()


def public_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.pub")


def own_key(path: Path) -> str:
    """Return the public key of the private key at `path`; raise UsageError if others can read
    that."""
    try:
        if path.stat().st_mode & 0o077:
            raise UsageError(f"the node's key {path} can be read by others: chmod 600 it")
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise UsageError(
            f"cannot read the node's key {path}: {exc}: --renew creates another"
        ) from exc
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return checked(public.decode(), path)


def read_public_key(path: Path) -> str:
    """Return the public key in the file at `path`, without its comment."""
    try:
        text = path.read_text()
        serialization.load_ssh_public_key(text.encode())
    except (OSError, ValueError, UnsupportedAlgorithm) as exc:
        raise UsageError(
            f"{path} is not a public key in OpenSSH's format ({exc}): create a pair on the device "
            "with `ssh-keygen -t ecdsa -b 384` and use its .pub file"
        ) from exc
    return checked(text, path)


def checked(text: str, path: Path) -> str:
    """Return `text` without its comment; raise UsageError if Flower does not accept this kind of
    key."""
    kind, key = text.split()[:2]
    if kind not in KINDS:
        raise UsageError(f"{path} is a key of kind {kind}: Flower needs `ssh-keygen -t ecdsa`")
    return f"{kind} {key}"


def fingerprint(public: str) -> str:
    """Return the fingerprint as `ssh-keygen -l` shows it: SHA256 and base64 of the key's bytes."""
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"
