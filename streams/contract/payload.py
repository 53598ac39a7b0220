"""Weights on their way between server and device: one block of bytes.

safetensors, whole or behind zstd, whichever is smaller; zstd's magic number tells. float16 halves
the way down by rounding floats, and the way up by sending, of each float tensor, the difference
from what came down: rounded, a difference loses a thousandth of itself, a weight a thousandth of
the weight. Nobody needs to be told which it is: a tensor is a difference where the model has
float32 and the block float16.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import safetensors.numpy
import zstandard
from safetensors import SafetensorError

from streams.contract.errors import MalformedRecord

Payload = Literal["float32", "float16"]
Tensors = Mapping[str, np.ndarray]

MAX_BYTES = 1 << 28
_ZSTD = b"\x28\xb5\x2f\xfd"  # as a safetensors header this would be 4 GB long
_LEVEL = 3
_WORTH = 0.98  # of the bytes, before zstd is worth its time


def pack(tensors: Tensors) -> bytes:
    """Tensors as they are, in the order given."""
    whole = safetensors.numpy.save({n: np.asarray(t, order="C") for n, t in tensors.items()})
    small = zstandard.ZstdCompressor(level=_LEVEL).compress(whole)
    return small if len(small) < _WORTH * len(whole) else whole


def unpack(data: bytes, limit: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """MalformedRecord says what is wrong with the block, and when it holds more than `limit`."""
    try:
        if data.startswith(_ZSTD):
            data = _decompressed(data, limit)
        if len(data) > limit:
            raise MalformedRecord("payload", f"more than {limit} bytes of weights")
        return safetensors.numpy.load(data)
    except (SafetensorError, zstandard.ZstdError, ValueError, KeyError, TypeError) as exc:
        raise MalformedRecord("payload", f"no block of weights: {exc!r}"[:300]) from exc


def round_weights(tensors: Tensors, payload: Payload) -> dict[str, np.ndarray]:
    """What a device that is sent `tensors` trains from: float32 to the nearest float16's value."""
    if payload == "float32":
        return dict(tensors)
    return {n: _half(t).astype(t.dtype) if _is_float(t) else t for n, t in tensors.items()}


def encode_weights(tensors: Tensors, payload: Payload) -> bytes:
    """The server's block; `rounded` of the same tensors is what it says."""
    return pack(_halved(tensors, payload))


def to_safetensors(tensors: Tensors, payload: Payload) -> bytes:
    """The same as a safetensors file, which an artifact holds."""
    halved = _halved(tensors, payload)
    return safetensors.numpy.save({n: np.asarray(t, order="C") for n, t in halved.items()})


def _halved(tensors: Tensors, payload: Payload) -> dict[str, np.ndarray]:
    if payload == "float32":
        return dict(tensors)
    return {n: _half(t) if _is_float(t) else t for n, t in tensors.items()}


def to_float32(tensors: Tensors) -> dict[str, np.ndarray]:
    """What came down, as the model has it: float32."""
    return {n: t.astype(np.float32) if t.dtype == np.float16 else t for n, t in tensors.items()}


def encode_update(tensors: Tensors, received: Tensors, payload: Payload) -> bytes:
    """A device's block: its weights, or in float16 what they differ by from those received."""
    if payload == "float32":
        return pack(tensors)
    return pack({n: _half(t - received[n]) if _is_float(t) else t for n, t in tensors.items()})


def restore_update(tensors: Tensors, sent: Tensors) -> dict[str, np.ndarray]:
    """A device's block as weights; what does not fit `sent` stays, for admission to refuse."""
    return {name: _whole(tensor, sent.get(name)) for name, tensor in tensors.items()}


def _whole(tensor: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    is_step = (
        before is not None
        and tensor.dtype == np.float16
        and before.dtype == np.float32
        and tensor.shape == before.shape
    )
    if not is_step or before is None:
        return tensor
    return np.asarray(before + tensor.astype(np.float32))


def _is_float(tensor: np.ndarray) -> bool:
    return bool(tensor.dtype == np.float32)


def _half(tensor: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # too large becomes infinite, which no server admits
        return tensor.astype(np.float16)


def _decompressed(data: bytes, limit: int) -> bytes:
    """The frame says how much it holds, and zstd holds it to that."""
    size = zstandard.get_frame_parameters(data).content_size
    if not 0 < size <= limit:
        raise MalformedRecord("payload", f"a zstd frame of {size} bytes, {limit} are allowed")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=limit)
