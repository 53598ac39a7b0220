"""An artifact as what it differs by from another one that the receiver has.

Layout (little endian):

    8 bytes   magic "TWDELT01"
    4 bytes   length of the head
    n bytes   head, zstd: the artifact's own bytes up to its files: magic, lengths, manifest,
              signature
    ...       per file of the manifest: 1 byte how, 4 bytes length, so many bytes

How a file is made:

    0  same    the base's file of that name, unchanged; no bytes
    1  zstd    the bytes, zstd; with the base's file of that name as dictionary where it has one
    2  steps   safetensors: the header as it is (4 bytes length, then zstd of it), then zstd of the
               tensors' steps. A step is the difference of two numbers' bits, taken as integers of
               the number's size, modulo 2^bits, zigzag-coded; the base's number is first cast to
               the new type. Nearby floats have nearby bits (IEEE 754), so steps are small; their
               bytes stand by significance, most significant first, so that zstd finds the zeros.
               A tensor that the base has not, or in another shape, steps from zeros.

`make` takes the smallest. Nothing is lost: the result is the artifact to the bit, and is verified
as if it had come whole. What a delta may claim is bounded by the manifest, whose signature is
checked before anything is unpacked.
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

from streams.contract.artifact import files_of, head_of, read_manifest, take_head
from streams.contract.errors import ArtifactError

MAGIC = b"TWDELT01"
MAX_HEAD = 1 << 21
LEVEL = 19
SAME, ZSTD, STEPS = 0, 1, 2

_LENGTH = struct.Struct("<I")
_PART = struct.Struct("<BI")
_WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def make(artifact: bytes, base: Mapping[str, bytes]) -> bytes:
    """What makes `artifact` of the files of `base`."""
    manifest, files = files_of(artifact)
    head = zstandard.ZstdCompressor(level=LEVEL).compress(head_of(artifact))
    parts = [MAGIC + _LENGTH.pack(len(head)) + head]
    for entry in manifest.files:
        how, data = _smallest(files[entry.name], base.get(entry.name))
        parts += [_PART.pack(how, len(data)), data]
    return b"".join(parts)


def apply(delta: bytes, base: Mapping[str, bytes], trusted: Sequence[Ed25519PublicKey]) -> bytes:
    """The artifact's bytes; ArtifactError where the delta is not one of them on this base."""
    try:
        return _applied(delta, base, trusted)
    except (
        struct.error, zstandard.ZstdError, SafetensorError, ValueError, KeyError, TypeError,
        IndexError, OverflowError,
    ) as exc:  # fmt: skip
        raise ArtifactError("delta", f"it cannot be applied: {exc!r}"[:300]) from exc


def _applied(delta: bytes, base: Mapping[str, bytes], trusted: Sequence[Ed25519PublicKey]) -> bytes:
    if delta[: len(MAGIC)] != MAGIC:
        raise ArtifactError("delta", "no delta: the magic bytes are missing")
    at = len(MAGIC) + _LENGTH.size
    (size,) = _LENGTH.unpack_from(delta, len(MAGIC))
    head = _unpacked(delta[at : at + size], MAX_HEAD)
    text, signature = take_head(head)
    manifest, at = read_manifest(text, signature, trusted), at + size
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
    found = [(ZSTD, _compressor(base).compress(data))]
    with contextlib.suppress(SafetensorError, ValueError, KeyError, TypeError, struct.error):
        found.append((STEPS, _steps(data, base)))  # where it is safetensors
    return min(found, key=lambda part: len(part[1]))


def _made(how: int, part: bytes, size: int, base: bytes | None) -> bytes:
    """One file of `size` bytes."""
    if how == SAME:
        if base is None:
            raise ArtifactError("delta", "the base lacks a file that it is said to have")
        return base
    if how == ZSTD:
        dictionary = None if not base else zstandard.ZstdCompressionDict(base)
        return _unpacked(part, size, dictionary)
    if how == STEPS:
        return _from_steps(part, size, base)
    raise ArtifactError("delta", f"a file is made in a way {how} that this program does not know")


def _compressor(base: bytes | None) -> zstandard.ZstdCompressor:
    if not base:
        return zstandard.ZstdCompressor(level=LEVEL)
    return zstandard.ZstdCompressor(level=LEVEL, dict_data=zstandard.ZstdCompressionDict(base))


def _unpacked(
    data: bytes, limit: int, dictionary: zstandard.ZstdCompressionDict | None = None
) -> bytes:
    """A zstd frame says how much it holds, and is held to that."""
    size = zstandard.get_frame_parameters(data).content_size
    if not 0 <= size <= limit:
        raise ArtifactError("delta", f"a part of {size} bytes, {limit} are allowed")
    return zstandard.ZstdDecompressor(dict_data=dictionary).decompress(data, max_output_size=limit)


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
    header = _unpacked(part[_LENGTH.size : _LENGTH.size + length], size)
    planes = _unpacked(part[_LENGTH.size + length :], size)
    if len(header) + len(planes) != size:
        raise ArtifactError("delta", f"{len(header) + len(planes)} bytes of tensors, not {size}")
    before = safetensors.numpy.load(base) if base else {}
    body, at = bytearray(len(planes)), 0
    for name, tensor in _tensors(header, planes):  # only their shapes count
        n, width = tensor.size, tensor.dtype.itemsize
        kind = _WIDTHS[width]
        rows = np.frombuffer(planes, np.uint8, n * width, at).reshape(width, n)[::-1]
        step = _unzigzag(np.ascontiguousarray(rows.T).reshape(-1).view(kind))
        whole = step + _reference(before.get(name), tensor)
        body[at : at + n * width] = whole.astype(kind).tobytes()
        at += n * width
    return header + bytes(body)


def _split(data: bytes) -> tuple[bytes, bytes]:
    """A safetensors file's header, with its length before it, and its tensors."""
    (length,) = struct.unpack_from("<Q", data)
    return data[: 8 + length], data[8 + length :]


def _tensors(header: bytes, body: bytes) -> list[tuple[str, np.ndarray]]:
    """In the order of their bytes, which stand one after the other without a gap."""
    found = safetensors.numpy.load(header + body)
    told = json.loads(header[8:])
    order = sorted(found, key=lambda name: told[name]["data_offsets"])
    if sum(found[name].nbytes for name in order) != len(body):
        raise ValueError("the tensors are not all there is")
    return [(name, found[name]) for name in order]


def _reference(before: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    """The base's numbers in the new type, as integers: (n,)"""
    kind = _WIDTHS[like.dtype.itemsize]
    if before is None or before.shape != like.shape:
        return np.zeros(like.size, kind)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.ascontiguousarray(before.reshape(-1).astype(like.dtype))
    return cast.view(kind)


def _zigzag(step: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, … modulo 2^bits become 0, 1, 2, 3, …"""
    bits = step.dtype.itemsize * 8
    sign = (step >> np.array(bits - 1, step.dtype)).astype(step.dtype)
    doubled = (step << np.array(1, step.dtype)).astype(step.dtype)
    return np.asarray(doubled ^ (~sign + np.array(1, step.dtype)).astype(step.dtype))


def _unzigzag(coded: np.ndarray) -> np.ndarray:
    one = np.array(1, coded.dtype)
    return np.asarray((coded >> one) ^ (~(coded & one) + one).astype(coded.dtype))


def _planes(values: np.ndarray) -> bytes:
    """The bytes by significance, the most significant first."""
    width = values.dtype.itemsize
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, width).T[::-1]).tobytes()
