"""One model version as bytes: weights, the ONNX graph, and a signed manifest.

Layout of the file (little endian), also what travels on `artifacts`:

    8 bytes   magic "TWARTF01"
    4 bytes   length of the manifest
    4 bytes   length of the signature (64)
    n bytes   manifest: UTF-8 JSON, see Manifest
    64 bytes  ed25519 signature over magic + manifest
    ...       the files, in the manifest's order, without anything between or after

The artifact's digest is the SHA-256 of the manifest, which holds the SHA-256 of every file: the
digest names the content. A model version is written `<number>-<first 8 digits of the digest>`.

`unpack` gives nothing back unless the signature is by a trusted key, every digest and length is
right, and task and task version are those asked for.
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field

from streams.contract.documents import Document
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.signing import key_id, verify

MAGIC = b"TWARTF01"
WEIGHTS = "weights.safetensors"
GRAPH = "graph.onnx"
DRIFT = "drift.json"  # drift.Reference; artifacts of before it have none
PROBE = "probe.safetensors"  # of a model: inputs (n, channels, samples), outputs (n, outputs)
MAX_MANIFEST = 1 << 20

_LENGTHS = struct.Struct("<II")


class FileEntry(Document):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,60}$")
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Document):
    """What an artifact is and where it comes from. `kind` is "model" or "teacher"."""

    format: int = 1
    kind: str = "model"
    task: str
    task_version: int
    number: int = Field(ge=1)
    base: str | None = None
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
    """A verified model version."""

    manifest: Manifest
    digest: str
    files: Mapping[str, bytes]

    @property
    def model(self) -> str:
        """The model version's name, as events carry it."""
        return model_name(self.manifest.number, self.digest)


def model_name(number: int, digest: str) -> str:
    return f"{number}-{digest[:8]}"


def pack(manifest: Manifest, files: Mapping[str, bytes], key: Ed25519PrivateKey) -> bytes:
    """Sign and lay out an artifact; the manifest's `files` and `key` are filled in here."""
    entries = [
        FileEntry(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    ]
    full = manifest.model_copy(update={"files": entries, "key": key_id(key.public_key())})
    text = json.dumps(full.model_dump(), sort_keys=True, separators=(",", ":")).encode()
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
    """Verify an artifact and take it apart; ArtifactError says why it must not be run."""
    text, signature, body = _split(data)
    found = hashlib.sha256(text).hexdigest()
    if digest is not None and found != digest:
        raise ArtifactError("digest", f"the manifest has {found[:12]}…, {digest[:12]}… was offered")
    manifest = read_manifest(text, signature, trusted)
    _check_use(manifest, task, task_version, kind)
    return Artifact(manifest, found, _files(manifest, body))


def read_manifest(text: bytes, signature: bytes, trusted: Sequence[Ed25519PublicKey]) -> Manifest:
    """The manifest, if a trusted key has signed it; ArtifactError."""
    keys = {key_id(key): key for key in trusted}
    try:
        signer = str(json.loads(text)["key"])
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise ArtifactError("manifest", "the manifest is no JSON object with a key") from exc
    if signer not in keys:
        raise ArtifactError("untrusted-key", f"signed by {signer[:16]}, which is not trusted here")
    if not verify(keys[signer], signature, MAGIC + text):
        raise ArtifactError("signature", f"the signature is not by key {signer}")
    try:
        return Manifest.decode(text)
    except MalformedRecord as exc:
        raise ArtifactError("manifest", str(exc)) from exc


def head_of(data: bytes) -> bytes:
    """An artifact's bytes up to its files."""
    text, signature, _ = _split(data)
    return data[: len(MAGIC) + _LENGTHS.size + len(text) + len(signature)]


def take_head(head: bytes) -> tuple[bytes, bytes]:
    """What `head_of` gave, as manifest and signature, neither looked at yet."""
    text, signature, rest = _split(head)
    if rest:
        raise ArtifactError("truncated", f"{len(rest)} bytes after the manifest's signature")
    return text, signature


def files_of(data: bytes) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the files of an artifact that was verified before."""
    text, _, body = _split(data)
    manifest = Manifest.decode(text)
    return manifest, _files(manifest, body)


def _split(data: bytes) -> tuple[bytes, bytes, bytes]:
    start = len(MAGIC) + _LENGTHS.size
    if len(data) < start or data[: len(MAGIC)] != MAGIC:
        raise ArtifactError("truncated", "no artifact: the magic bytes are missing")
    manifest_size, signature_size = _LENGTHS.unpack_from(data, len(MAGIC))
    end = start + manifest_size + signature_size
    if manifest_size > MAX_MANIFEST or signature_size != 64 or len(data) < end:
        raise ArtifactError("truncated", f"{len(data)} bytes end inside the manifest")
    return data[start : start + manifest_size], data[end - 64 : end], data[end:]


def _check_use(manifest: Manifest, task: str, task_version: int, kind: str) -> None:
    if manifest.format != 1:
        raise ArtifactError("format", f"format {manifest.format}, this program reads 1: upgrade it")
    if manifest.kind != kind:
        raise ArtifactError("kind", f"a {manifest.kind}, not a {kind}")
    if (manifest.task, manifest.task_version) != (task, task_version):
        have = f"{manifest.task} version {manifest.task_version}"
        raise ArtifactError("task", f"made for task {have}, not {task} version {task_version}")


def _files(manifest: Manifest, body: bytes) -> dict[str, bytes]:
    expected = sum(entry.size for entry in manifest.files)
    if len(body) != expected:
        raise ArtifactError(
            "truncated", f"{len(body)} bytes of files, the manifest says {expected}"
        )
    files, at = {}, 0
    for entry in manifest.files:
        data = body[at : at + entry.size]
        at += entry.size
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ArtifactError("digest", f"{entry.name} differs from its digest in the manifest")
        files[entry.name] = data
    return files
