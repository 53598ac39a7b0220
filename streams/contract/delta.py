"""An artifact encoded as a delta from another one that the receiver has.

Layout (little endian):

    8 bytes   magic "TWDELT01"
    4 bytes   length of the head
    n bytes   head, zstd: the artifact's bytes before its files (magic, lengths, manifest,
              signature)
    ...       per file of the manifest: 1 byte encoding, 4 bytes length, then that many bytes

Encodings of a file:

    0  same    the base's file of the same name, unchanged; no bytes
    1  zstd    the bytes, zstd, with the base's file of the same name as dictionary if there is one
    2  steps   safetensors: 4 bytes length, zstd of the header, then zstd of the tensors' steps.
               A step is the difference of two numbers' bits, taken as integers of the number's
               size, modulo 2^bits, zigzag-coded; the base's number is first cast to the new type.
               Nearby floats have nearby bits (IEEE 754), so steps are small. Their bytes are
               ordered by significance, most significant first, so that zstd finds the zeros. A
               tensor that the base lacks, or has in another shape, is encoded against zeros.

`make` takes the smallest encoding. The delta is lossless: the result is bit-identical to the
artifact and is verified as a complete download is. The manifest's signature is verified before
anything is unpacked, and the manifest bounds every size.
"""

import contextlib
import json
import struct
from collections.abc import Mapping, Sequence

import numpy as np
import safetensors.numpy
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from safetensors import SafetensorError

from streams.contract.artifact import files_of, head_of, read_manifest, split_head
from streams.contract.decisions import MAX_BYTES
from streams.contract.errors import ArtifactError
from streams.contract.payload import decompressed

MAGIC = b"TWDELT01"
MAX_HEAD = 1 << 21
LEVEL = 19
SAME, ZSTD, STEPS = 0, 1, 2

_LENGTH = struct.Struct("<I")
_PART = struct.Struct("<BI")
_WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def make(artifact: bytes, base: Mapping[str, bytes]) -> bytes:
    """Return the delta from the files of `base` to `artifact`."""
    manifest, files = files_of(artifact)
    head = zstandard.ZstdCompressor(level=LEVEL).compress(head_of(artifact))
    parts = [MAGIC + _LENGTH.pack(len(head)) + head]
    for entry in manifest.files:
        how, data = _smallest(files[entry.name], base.get(entry.name))
        parts += [_PART.pack(how, len(data)), data]
    return b"".join(parts)


def apply(
    delta: bytes,
    base: Mapping[str, bytes],
    trusted: Sequence[Ed25519PublicKey],
    limit: int = MAX_BYTES,
) -> bytes:
    """Return the artifact's bytes; raise ArtifactError if the delta does not apply to `base`, or
    makes more than `limit` bytes."""
    try:
        return _applied(delta, base, trusted, limit)
    except (
        struct.error, zstandard.ZstdError, SafetensorError, ValueError, KeyError, TypeError,
        IndexError, OverflowError,
    ) as exc:  # fmt: skip
        raise ArtifactError("delta", f"it cannot be applied: {exc!r}"[:300]) from exc


def _applied(
    delta: bytes, base: Mapping[str, bytes], trusted: Sequence[Ed25519PublicKey], limit: int
) -> bytes:
    if delta[: len(MAGIC)] != MAGIC:
        raise ArtifactError("delta", "not a delta: the magic bytes are missing")
    at = len(MAGIC) + _LENGTH.size
    (size,) = _LENGTH.unpack_from(delta, len(MAGIC))
    head = decompressed(delta[at : at + size], MAX_HEAD)
    text, signature = split_head(head)
    manifest, at = read_manifest(text, signature, trusted), at + size
    if (whole := len(head) + sum(entry.size for entry in manifest.files)) > limit:
        raise ArtifactError("size", f"the delta makes {whole} bytes; at most {limit} are expected")
    parts = [head]
    for entry in manifest.files:
        how, size = _PART.unpack_from(delta, at)
        at += _PART.size
        part, at = delta[at : at + size], at + size
        if len(part) != size:
            raise ArtifactError("truncated", f"the delta ends inside {entry.name}")
        parts.append(_made(how, part, entry.size, base.get(entry.name)))
    return b"".join(parts)


def _smallest(data: bytes, base: bytes | None) -> tuple[int, bytes]:
    if data == base:
        return SAME, b""
    compressor = zstandard.ZstdCompressor(level=LEVEL, dict_data=_dictionary(base))
    found = [(ZSTD, compressor.compress(data))]
    with contextlib.suppress(SafetensorError, ValueError, KeyError, TypeError, struct.error):
        found.append((STEPS, _steps(data, base)))  # raises unless it is safetensors
    return min(found, key=lambda part: len(part[1]))


def _made(how: int, part: bytes, size: int, base: bytes | None) -> bytes:
    """Decode one file of `size` bytes."""
    if how == SAME:
        if base is None:
            raise ArtifactError("delta", "the base lacks a file that the delta refers to")
        return base
    if how == ZSTD:
        return decompressed(part, size, _dictionary(base))
    if how == STEPS:
        return _from_steps(part, size, base)
    raise ArtifactError("delta", f"unknown encoding {how} of a file: upgrade this program")


def _dictionary(base: bytes | None) -> zstandard.ZstdCompressionDict | None:
    return zstandard.ZstdCompressionDict(base) if base else None


def _steps(data: bytes, base: bytes | None) -> bytes:
    header, body = _split(data)
    before = safetensors.numpy.load(base) if base else {}
    planes = []
    for name, tensor in _tensors(header, body):
        kind = _WIDTHS[tensor.dtype.itemsize]
        step = tensor.reshape(-1).view(kind) - _reference(before.get(name), tensor)
        planes.append(_planes(_zigzag(step)))
    packed = zstandard.ZstdCompressor(level=LEVEL)
    head = packed.compress(header)
    return _LENGTH.pack(len(head)) + head + packed.compress(b"".join(planes))


def _from_steps(part: bytes, size: int, base: bytes | None) -> bytes:
    (length,) = _LENGTH.unpack_from(part)
    header = decompressed(part[_LENGTH.size : _LENGTH.size + length], size)
    planes = decompressed(part[_LENGTH.size + length :], size)
    if len(header) + len(planes) != size:
        raise ArtifactError("delta", f"{len(header) + len(planes)} bytes of tensors, not {size}")
    before = safetensors.numpy.load(base) if base else {}
    body, at = bytearray(len(planes)), 0
    for name, tensor in _tensors(header, planes):  # for the shapes only
        n, width = tensor.size, tensor.dtype.itemsize
        kind = _WIDTHS[width]
        rows = np.frombuffer(planes, np.uint8, n * width, at).reshape(width, n)[::-1]
        step = _unzigzag(np.ascontiguousarray(rows.T).reshape(-1).view(kind))
        whole = step + _reference(before.get(name), tensor)
        body[at : at + n * width] = whole.astype(kind).tobytes()
        at += n * width
    return header + bytes(body)


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Split a safetensors file into its header, including the length, and its tensors."""
    (length,) = struct.unpack_from("<Q", data)
    return data[: 8 + length], data[8 + length :]


def _tensors(header: bytes, body: bytes) -> list[tuple[str, np.ndarray]]:
    """Return the tensors in the order of their bytes; raise ValueError if these have gaps."""
    found = safetensors.numpy.load(header + body)
    entries = json.loads(header[8:])
    order = sorted(found, key=lambda name: entries[name]["data_offsets"])
    if sum(found[name].nbytes for name in order) != len(body):
        raise ValueError("there are bytes that belong to no tensor")
    return [(name, found[name]) for name in order]


def _reference(before: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    """Return the base's numbers, cast to the new type, as integers (n,)."""
    kind = _WIDTHS[like.dtype.itemsize]
    if before is None or before.shape != like.shape:
        return np.zeros(like.size, kind)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.ascontiguousarray(before.reshape(-1).astype(like.dtype))
    return cast.view(kind)


def _zigzag(step: np.ndarray) -> np.ndarray:
    """Map 0, -1, 1, -2, … modulo 2^bits to 0, 1, 2, 3, …"""
    signed = step.view(step.dtype.str.replace("u", "i"))
    return np.asarray((signed << 1) ^ (signed >> (8 * signed.itemsize - 1))).view(step.dtype)


def _unzigzag(coded: np.ndarray) -> np.ndarray:
    return np.asarray((coded >> 1) ^ -(coded & 1))


def _planes(values: np.ndarray) -> bytes:
    """Return the bytes ordered by significance, the most significant first."""
    width = values.dtype.itemsize
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, width).T[::-1]).tobytes()
