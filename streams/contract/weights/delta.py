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
    3  grid    safetensors as in 2, but before the tensors' bytes there is a signed byte for each
               tensor: -128 if it has steps, else the exponent of its grid about the base (float16,
               streams.contract.weights.payload), whose codes, modulo 2^16, are in place of steps

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
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from safetensors import SafetensorError

from streams.contract.artifact import (
    LEARNED,
    WEIGHTS,
    Manifest,
    check_file,
    files_of,
    head_of,
    read_manifest,
    split_head,
)
from streams.contract.decisions import MAX_BYTES
from streams.contract.errors import ArtifactError
from streams.contract.weights import payload
from streams.contract.weights.part import merged
from streams.contract.zstd import ZstdError, compressed, decompressed

MAGIC = b"TWDELT01"
MAX_HEAD = 1 << 21
MAX_TENSORS = 1 << 20
LEVEL, FAST, LARGE = 19, 9, 1 << 20  # of zstd; for files from LARGE on: 2 % more, 20 times as fast
SAME, ZSTD, STEPS, GRID, OF_LEARNED = 0, 1, 2, 3, 4
NO_GRID = -128

_UNFIT = (SafetensorError, ValueError, KeyError, TypeError, struct.error)
_LENGTH = struct.Struct("<I")
_PART = struct.Struct("<BI")
_WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def make(artifact: bytes, base: Mapping[str, bytes]) -> bytes:
    """Return the delta from the files of `base` to `artifact`."""
    manifest, files = files_of(artifact)
    head = compressed(head_of(artifact), LEVEL)
    parts = [MAGIC + _LENGTH.pack(len(head)) + head]
    for entry in manifest.files:
        data = files[entry.name]
        how, part = _smallest(data, base.get(_before(entry.name)))
        if entry.name == WEIGHTS and LEARNED in files:
            with contextlib.suppress(*_UNFIT):
                header = _split(data)[0]
                if _of_learned(header, manifest, base, files[LEARNED]) == data:
                    how, part = OF_LEARNED, compressed(header, LEVEL)
        parts += [_PART.pack(how, len(part)), part]
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
        struct.error, ZstdError, SafetensorError, ValueError, KeyError, TypeError,
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
    parts, learned = [head], b""
    for entry in manifest.files:
        how, size = _PART.unpack_from(delta, at)
        at += _PART.size
        part, at = delta[at : at + size], at + size
        if len(part) != size:
            raise ArtifactError("truncated", f"the delta ends inside {entry.name}")
        if how == OF_LEARNED:
            header = decompressed(part, entry.size)
            made = _of_learned(header, manifest, base, learned)
        else:
            made = _made(how, part, entry.size, base.get(_before(entry.name)))
        if entry.name == LEARNED:
            learned = check_file(entry, made)  # what it makes takes as much as it says
        parts.append(made)
    return b"".join(parts)


def _before(name: str) -> str:
    """Return the base's file that is near to a file."""
    return WEIGHTS if name == LEARNED else name


def _of_learned(
    header: bytes, manifest: Manifest, base: Mapping[str, bytes], learned: bytes
) -> bytes:
    """Return the weights file with a header, of the base and what was learned from it."""
    files = base[WEIGHTS], learned
    before, steps = (payload.to_float32(safetensors.numpy.load(each)) for each in files)
    found = before | merged(before, steps, manifest.base or "")
    size = next(entry.size for entry in manifest.files if entry.name == WEIGHTS)
    like = _tensors(header, bytes(max(size - len(header), 0)))
    with np.errstate(over="ignore"):
        return header + b"".join(found[n].astype(t.dtype).tobytes() for n, t in like)


def _smallest(data: bytes, base: bytes | None) -> tuple[int, bytes]:
    if data == base:
        return SAME, b""
    found = [(ZSTD, compressed(data, _level(data), base))]
    with contextlib.suppress(*_UNFIT):
        found.append(_steps(data, base))  # raises unless it is safetensors
    return min(found, key=lambda part: len(part[1]))


def _made(how: int, part: bytes, size: int, base: bytes | None) -> bytes:
    """Decode one file of `size` bytes."""
    if how == SAME:
        if base is None:
            raise ArtifactError("delta", "the base lacks a file that the delta refers to")
        return base
    if how == ZSTD:
        return decompressed(part, size, base)
    if how in (STEPS, GRID):
        return _from_steps(part, size, base, grids=how == GRID)
    raise ArtifactError("delta", f"unknown encoding {how} of a file: upgrade this program")


def _steps(data: bytes, base: bytes | None) -> tuple[int, bytes]:
    """Return the encoding of a safetensors file: by grids if a tensor has one, else by steps."""
    header, body = _split(data)
    before = safetensors.numpy.load(base) if base else {}
    grids, planes = [], []
    for name, tensor in _tensors(header, body):
        reference = _reference(before.get(name), tensor)
        exponent, codes = _codes(tensor, reference)
        grids.append(exponent)
        planes.append(_planes(_zigzag(codes)))
    how = GRID if any(each != NO_GRID for each in grids) else STEPS
    head = compressed(header, LEVEL)
    coded = np.array(grids, np.int8).tobytes() if how == GRID else b""
    tensors = compressed(coded + b"".join(planes), _level(data))
    return how, _LENGTH.pack(len(head)) + head + tensors


def _level(data: bytes) -> int:
    return LEVEL if len(data) < LARGE else FAST


def _codes(tensor: np.ndarray, reference: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the exponent of a tensor's grid, with its codes; or NO_GRID, with its steps."""
    kind = reference.dtype
    flat = tensor.reshape(-1)
    if payload.suits_grid(tensor):
        base = reference.view(np.float16)
        with np.errstate(over="ignore", invalid="ignore"):
            size = payload.grid_exponent(flat.astype(np.float64) - base.astype(np.float64))
        # what is on a grid has a little more or less than the size that the grid was made for
        for exponent in () if size is None else (size + 1, size, size - 1):
            codes = payload.grid_codes(flat, base, exponent)
            if not (np.abs(codes) < 1 << 15).all():
                continue
            if np.array_equal(payload.on_grid(base, codes, exponent).view(kind), flat.view(kind)):
                return exponent, codes.astype(np.int16).view(kind)
    return NO_GRID, flat.view(kind) - reference


def _from_steps(part: bytes, size: int, base: bytes | None, *, grids: bool) -> bytes:
    (length,) = _LENGTH.unpack_from(part)
    header = decompressed(part[_LENGTH.size : _LENGTH.size + length], size)
    before = safetensors.numpy.load(base) if base else {}
    planes = decompressed(part[_LENGTH.size + length :], size + (MAX_TENSORS if grids else 0))
    count = len(planes) - (size - len(header)) if grids else 0
    exponents, planes = np.frombuffer(planes[: max(count, 0)], np.int8), planes[max(count, 0) :]
    if len(header) + len(planes) != size:
        raise ArtifactError("delta", f"{len(header) + len(planes)} bytes of tensors, not {size}")
    tensors = _tensors(header, planes)  # for the shapes only
    if grids and len(tensors) != count:
        raise ArtifactError("delta", f"{count} grids for {len(tensors)} tensors")
    body, at = bytearray(len(planes)), 0
    for index, (name, tensor) in enumerate(tensors):
        n, width = tensor.size, tensor.dtype.itemsize
        kind = _WIDTHS[width]
        rows = np.frombuffer(planes, np.uint8, n * width, at).reshape(width, n)[::-1]
        step = _unzigzag(np.ascontiguousarray(rows.T).reshape(-1).view(kind))
        reference = _reference(before.get(name), tensor)
        exponent = int(exponents[index]) if grids else NO_GRID
        whole = step + reference if exponent == NO_GRID else _on_grid(reference, step, exponent)
        body[at : at + n * width] = whole.astype(kind).tobytes()
        at += n * width
    return header + bytes(body)


def _on_grid(reference: np.ndarray, codes: np.ndarray, exponent: int) -> np.ndarray:
    """Return the bits of the numbers that are `codes` from the reference's (both uint16)."""
    if reference.dtype != np.uint16:
        raise ArtifactError("delta", "a grid is for float16 alone")
    found = payload.on_grid(reference.view(np.float16), codes.view(np.int16), exponent)
    return found.view(reference.dtype)


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
