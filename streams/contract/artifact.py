"""One model version as bytes: weights, the ONNX graph, and a signed manifest.

Layout of the file and of the bytes on `artifacts` (little endian):

    8 bytes   magic "TWARTF01"
    4 bytes   length of the manifest
    4 bytes   length of the signature (64)
    n bytes   manifest: UTF-8 JSON, see Manifest
    64 bytes  ed25519 signature over magic + manifest
    ...       the files in the manifest's order, nothing between or after them

The artifact's digest is the SHA-256 of the manifest, which holds the SHA-256 of every file. A model
version is written `<number>-<first 8 digits of the digest>`.

A model with `int8.safetensors` answers with the graph that is its one tensor of bytes: a delta has
the steps of those (federation.evaluation.quantization). Weights and float graph are then the last
files, and a device that does not train gets the bytes before them.

`unpack` returns an artifact only if a trusted key signed it, all digests and lengths match, and it
is for the requested task and task version.

Signatures are ed25519 (RFC 8032), of decisions and invitations as well. A key's ID is the first 16
hex digits of the SHA-256 of its 32 raw public bytes.
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from streams.contract.documents import END, Count, Digest, Document, signed_text
from streams.contract.errors import ArtifactError, MalformedRecord


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


MAGIC = b"TWARTF01"
WEIGHTS = "weights.safetensors"
GRAPH = "graph.onnx"  # of a model that learns without the weights, see learning.onnx_model
INT8 = "int8.safetensors"  # the quantized graph with its weights
LEARNED = "learned.safetensors"  # what a run with `Training.lora` carried, see weights.part
FLOAT = (LEARNED, WEIGHTS, GRAPH)  # what a device needs beside INT8 to train
DRIFT = "drift.json"  # drift.Reference; missing in older artifacts
PROBE = "probe.safetensors"  # of a model: inputs (n, channels, samples), outputs (n, outputs)
MAX_MANIFEST = 1 << 20

_LENGTHS = struct.Struct("<II")


class FileEntry(Document):
    name: Annotated[str, Meta(pattern=rf"^[a-z0-9][a-z0-9.-]{{0,60}}{END}")]
    size: Count
    sha256: Digest


class Manifest(Document):
    """Content and origin of an artifact. `kind` is "model" or "teacher"; `source` is the file that
    its weights or its graph were read from, and the file's SHA-256: "" if they were learned."""

    format: int = 1
    kind: str = "model"
    task: str
    task_version: int
    number: Annotated[int, Meta(ge=1)]
    base: str | None = None
    source: str = ""
    run: str | None = None
    round: int = 0
    created_us: int
    metrics: dict[str, float] = {}
    admitted: int = 0
    refused: int = 0
    key: str
    files: list[FileEntry]


@dataclass(frozen=True)
class Artifact:
    """A verified model version; `size` is that of all its bytes."""

    manifest: Manifest
    digest: str
    files: Mapping[str, bytes]
    size: int = 0

    @property
    def model(self) -> str:
        """The name of the model version, as in events."""
        return model_name(self.manifest.number, self.digest)


def model_name(number: int, digest: str) -> str:
    return f"{number}-{digest[:8]}"


def pack(manifest: Manifest, files: Mapping[str, bytes], key: Ed25519PrivateKey) -> bytes:
    """Return the bytes of a signed artifact; fills in the manifest's `files` and `key`."""
    if INT8 in files:
        files = dict(sorted(files.items(), key=lambda file: file[0] in FLOAT))
    entries = [
        FileEntry(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    ]
    full = manifest.replace(files=entries, key=key_id(key.public_key()))
    text = signed_text(full).encode()
    signature = key.sign(MAGIC + text)
    head = MAGIC + _LENGTHS.pack(len(text), len(signature)) + text + signature
    return head + b"".join(files.values())


def unpack(
    data: bytes,
    trusted: Sequence[Ed25519PublicKey],
    *,
    task: str,
    task_version: int,
    kind: str = "model",
    digest: str | None = None,
) -> Artifact:
    """Verify and parse an artifact; raise ArtifactError if it must not be run."""
    text, signature, body = _split(data)
    found = hashlib.sha256(text).hexdigest()
    if digest is not None and found != digest:
        raise ArtifactError("digest", f"the manifest has {found[:12]}…, expected {digest[:12]}…")
    manifest = read_manifest(text, signature, trusted)
    _check_use(manifest, task, task_version, kind)
    return Artifact(manifest, found, _files(manifest, body), len(data))


def read_manifest(text: bytes, signature: bytes, trusted: Sequence[Ed25519PublicKey]) -> Manifest:
    """Return the manifest; raise ArtifactError unless a trusted key has signed it."""
    check_signature("manifest", MAGIC, text, signature, {key_id(key): key for key in trusted})
    try:
        return Manifest.decode(text)
    except MalformedRecord as exc:
        raise ArtifactError("manifest", str(exc)) from exc


def without_float(data: bytes) -> bytes:
    """Return what of an artifact's bytes a device needs that only answers."""
    manifest = Manifest.decode(_split(data)[0])
    return data[: len(data) - _float_size(manifest)]


def is_quantized(manifest: Manifest) -> bool:
    return any(entry.name == INT8 for entry in manifest.files)


def _float_size(manifest: Manifest) -> int:
    if not is_quantized(manifest):
        return 0
    return sum(entry.size for entry in manifest.files if entry.name in FLOAT)


def head_of(data: bytes) -> bytes:
    """Return an artifact's bytes before its files: magic, lengths, manifest and signature."""
    text, signature, _ = _split(data)
    return data[: len(MAGIC) + _LENGTHS.size + len(text) + len(signature)]


def digest_of(data: bytes) -> str:
    """Return an artifact's digest without verifying anything."""
    return hashlib.sha256(_split(data)[0]).hexdigest()


def split_head(head: bytes) -> tuple[bytes, bytes]:
    """Return manifest and signature, unverified, of the bytes from `head_of`."""
    text, signature, rest = _split(head)
    if rest:
        raise ArtifactError("truncated", f"{len(rest)} bytes after the manifest's signature")
    return text, signature


def challenger_header(data: bytes) -> tuple[str, str, bytes]:
    """Return the version whose graph a device's `challenger.safetensors` is for, the name under
    which it answers, and its ChallengerState; raise ArtifactError without them."""
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        return str(metadata["base"]), str(metadata["model"]), metadata["state"].encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ArtifactError("not-runnable", "not the file of a challenger") from exc


def files_of(data: bytes) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest and files of an artifact that was verified before."""
    text, _, body = _split(data)
    manifest = Manifest.decode(text)
    return manifest, _files(manifest, body)


def _split(data: bytes) -> tuple[bytes, bytes, bytes]:
    start = len(MAGIC) + _LENGTHS.size
    if len(data) < start or data[: len(MAGIC)] != MAGIC:
        raise ArtifactError("truncated", "not an artifact: the magic bytes are missing")
    manifest_size, signature_size = _LENGTHS.unpack_from(data, len(MAGIC))
    end = start + manifest_size + signature_size
    if manifest_size > MAX_MANIFEST or signature_size != 64 or len(data) < end:
        raise ArtifactError("truncated", f"{len(data)} bytes end inside the manifest")
    return data[start : start + manifest_size], data[end - 64 : end], data[end:]


def _check_use(manifest: Manifest, task: str, task_version: int, kind: str) -> None:
    if manifest.format != 1:
        raise ArtifactError(
            "format", f"format {manifest.format}; this version reads format 1: upgrade it"
        )
    if manifest.kind != kind:
        raise ArtifactError("kind", f"it is a {manifest.kind}, not a {kind}")
    if (manifest.task, manifest.task_version) != (task, task_version):
        have = f"{manifest.task} version {manifest.task_version}"
        raise ArtifactError("task", f"it is for task {have}, not {task} version {task_version}")


def _files(manifest: Manifest, body: bytes) -> dict[str, bytes]:
    expected, entries = sum(entry.size for entry in manifest.files), manifest.files
    if (without := _float_size(manifest)) and len(body) == expected - without:
        expected, entries = len(body), [each for each in entries if each.name not in FLOAT]
    if len(body) != expected:
        raise ArtifactError(
            "truncated", f"{len(body)} bytes of files, but the manifest lists {expected}"
        )
    files, at = {}, 0
    for entry in entries:
        data = body[at : at + entry.size]
        at += entry.size
        files[entry.name] = check_file(entry, data)
    return files


def check_file(entry: FileEntry, data: bytes) -> bytes:
    """Return the bytes of a file of the manifest; raise ArtifactError for others."""
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ArtifactError("digest", f"{entry.name} differs from its digest in the manifest")
    return data
