"""Ed25519 keys on disk.

A private key is a PEM file (PKCS 8) with mode 0600, its public key a PEM file beside it with the
suffix `.pub`.
"""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from streams.contract.errors import UsageError
from streams.runtime.disk import write_atomic


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
