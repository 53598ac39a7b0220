"""Ed25519 signatures (RFC 8032) and key IDs.

A key's ID is the first 16 hex digits of the SHA-256 of its 32 raw public bytes.
"""

import hashlib
import json
from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from streams.contract.errors import ArtifactError


def key_id(key: Ed25519PublicKey) -> str:
    """Return the ID of a public key, 16 hex digits."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def public_keys(raws: Mapping[str, str]) -> dict[str, Ed25519PublicKey]:
    """Return the raw public keys (hex) by key ID; ignores the IDs in `raws`."""
    keys = [Ed25519PublicKey.from_public_bytes(bytes.fromhex(raw)) for raw in raws.values()]
    return {key_id(key): key for key in keys}


def check_signature(
    what: str, prefix: bytes, text: bytes, signature: bytes, trusted: Mapping[str, Ed25519PublicKey]
) -> None:
    """Raise ArtifactError unless the key whose ID is the field `key` of the JSON `text` is trusted
    and has signed `prefix` + `text`."""
    try:
        signer = str(json.loads(text)["key"])
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise ArtifactError(what, f"the {what} is not a JSON object with a key") from exc
    if signer not in trusted:
        raise ArtifactError("untrusted-key", f"signed by {signer[:16]}, which is not trusted here")
    try:
        trusted[signer].verify(signature, prefix + text)
    except InvalidSignature:
        raise ArtifactError(
            "signature", f"key {signer} did not make the {what}'s signature"
        ) from None
