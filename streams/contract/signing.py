"""Ed25519 signatures (RFC 8032) and key IDs.

A key's ID is the first 16 hex digits of the SHA-256 of its 32 raw public bytes.
"""

import hashlib
from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def key_id(key: Ed25519PublicKey) -> str:
    """Return the ID of a public key, 16 hex digits."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def public_keys(raws: Mapping[str, str]) -> dict[str, Ed25519PublicKey]:
    """Return the raw public keys (hex) by key ID; ignores the IDs in `raws`."""
    keys = [Ed25519PublicKey.from_public_bytes(bytes.fromhex(raw)) for raw in raws.values()]
    return {key_id(key): key for key in keys}


def verify(key: Ed25519PublicKey, signature: bytes, data: bytes) -> bool:
    """Return whether the private half of `key` made `signature` over `data`."""
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True
