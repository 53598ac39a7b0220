"""Encoding of model weights between server and device: one block of bytes.

A block is safetensors, plain or zstd-compressed, whichever is smaller; zstd's magic number tells
them apart. float16 halves the traffic. The server rounds its weights, and a candidate's to a grid
about the served ones. A device sends the difference of each float tensor from the received one,
because rounding a small difference costs less precision than rounding the weight. A tensor is a
difference if the model has float32 and the block has float16. The differences of a matrix are
rounded to a grid about zero, which halves their bytes.

The grid holds what a version changes: float16 numbers whose distance from the served ones is a
multiple of a power of two. The last bits of a fine-tuned float16 number are noise of the training,
and noise does not compress: they are most of a delta's bytes. So a candidate's tensors are put on a
grid about their base, 16 to 32 times as fine as the root mean square of the change: the error is
below 2 % of the change, and a number takes about 7 bits of a delta. (Differences that are quantized
evenly are differential pulse-code modulation; for a federation's updates see Konecny et al. 2016.)

Vectors - biases, and the means and variances of batch norm - are left as they are: they are few
bytes, and a small variance must not come near 0.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from streams.contract.errors import MalformedRecord
from streams.contract.zstd import MAGIC, ZstdError, compressed, decompressed

Payload = Literal["float32", "float16"]
Tensors = Mapping[str, np.ndarray]

MAX_BYTES = 1 << 28
LEVEL = 1  # of zstd: in floats level 3 finds no more, in twice the time
PART = 1 << 16  # numbers
_WORTH = 0.98  # the block is compressed only if it gets smaller than this share
_FLOATS = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)  # by their bits


def pack(tensors: Tensors) -> bytes:
    """Encode tensors, unchanged and in the given order."""
    whole = safetensors.numpy.save({n: np.asarray(t, order="C") for n, t in tensors.items()})
    small = compressed(whole, LEVEL)
    return small if len(small) < _WORTH * len(whole) else whole


def unpack(data: bytes, limit: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """Decode a block; raise MalformedRecord if it is invalid or larger than `limit` bytes."""
    try:
        if data.startswith(MAGIC):  # a safetensors header would be 4 GB long
            data = decompressed(data, limit)
        if len(data) > limit:
            raise MalformedRecord("payload", f"more than {limit} bytes of weights")
        return safetensors.numpy.load(data)
    except (SafetensorError, ZstdError, ValueError, KeyError, TypeError) as exc:
        raise MalformedRecord("payload", f"not a block of weights: {exc!r}"[:300]) from exc


def round_weights(tensors: Tensors, payload: Payload) -> dict[str, np.ndarray]:
    """Return the weights that a device receives: float32 rounded to float16 precision."""
    if payload == "float32":
        return dict(tensors)
    return {n: _half(t).astype(t.dtype) if _is_float(t) else t for n, t in tensors.items()}


def round_candidate(tensors: Tensors, base: Tensors, payload: Payload) -> dict[str, np.ndarray]:
    """Return the weights of a version that is made from `base`, as devices will have them: in
    float16 on a grid about the base, so that the delta is small."""
    if payload == "float32":
        return dict(tensors)
    return {n: _on_grid(t, base.get(n)) if _is_float(t) else t for n, t in tensors.items()}


def _on_grid(tensor: np.ndarray, base: np.ndarray | None) -> np.ndarray:
    half = _half(tensor)
    if base is not None and base.shape == half.shape and suits_grid(half):
        half = nearest(half, _half(base))
    return half.astype(tensor.dtype)


def encode_weights(tensors: Tensors, payload: Payload) -> bytes:
    """Encode the server's weights; they decode to `round_weights(tensors, payload)`."""
    return pack(_halved(tensors, payload))


def to_safetensors(tensors: Tensors, payload: Payload) -> bytes:
    """Encode the server's weights as the safetensors file of an artifact."""
    halved = _halved(tensors, payload)
    return safetensors.numpy.save({n: np.asarray(t, order="C") for n, t in halved.items()})


def _halved(tensors: Tensors, payload: Payload) -> dict[str, np.ndarray]:
    if payload == "float32":
        return dict(tensors)
    return {n: _half(t) if _is_float(t) else t for n, t in tensors.items()}


def to_float32(tensors: Tensors) -> dict[str, np.ndarray]:
    """Cast float16 tensors to float32, as the model has them."""
    return {n: t.astype(np.float32) if t.dtype == np.float16 else t for n, t in tensors.items()}


def encode_update(
    tensors: Tensors,
    received: Tensors,
    payload: Payload,
    half: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    grid: bool = True,
) -> bytes:
    """Encode a device's update: its weights, or in float16 their difference from `received`, on a
    grid or not: equal differences may all be rounded up, by 3 % at most.

    half: casts float32 to float16, as torch does in a hundredth of numpy's time where numbers are
    as small as differences.
    """
    if payload == "float32":
        return pack(tensors)
    cast, found = half or _half, dict[str, np.ndarray]()
    for name, tensor in tensors.items():
        if _is_float(tensor):
            change = np.asarray(tensor - received[name])
            found[name] = cast(_rounded(change) if grid else change)
        else:
            found[name] = tensor
    return pack(found)


def _rounded(change: np.ndarray) -> np.ndarray:
    """Return the differences (float32), which it takes, on the grid about zero."""
    exponent = grid_exponent(change) if change.ndim > 1 else None
    if exponent is not None:
        change *= np.float32(2.0**-exponent)
        np.rint(change, out=change)
        change *= np.float32(2.0**exponent)
    return change


def restore_update(tensors: Tensors, sent: Tensors) -> dict[str, np.ndarray]:
    """Return a decoded update as weights; tensors that do not fit `sent` stay as they are."""
    return {name: _whole(tensor, sent.get(name)) for name, tensor in tensors.items()}


def _whole(tensor: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    if before is None or before.shape != tensor.shape:
        return tensor
    if before.dtype != np.float32 or tensor.dtype != np.float16:
        return tensor
    after = np.empty_like(before, order="C")
    first, found = before.reshape(-1), after.reshape(-1)
    bits, change = tensor.reshape(-1).view(np.uint16), np.empty(PART, np.float32)
    for at in range(0, found.size, PART):  # which stays in the processor's cache
        part = slice(at, at + PART)
        steps = change[: len(found[part])]
        np.take(_FLOATS, bits[part], out=steps, mode="clip")  # unlike "raise" without a copy
        np.add(first[part], steps, out=found[part])
    return after


def _is_float(tensor: np.ndarray) -> bool:
    return bool(tensor.dtype == np.float32)


def _half(tensor: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # too large becomes infinite, which admission refuses
        return tensor.astype(np.float16)


# --- the grid of a candidate ----------------------------------------------------------------------

FINE = 4  # the step is 2^-4 to 2^-5 of the change's root mean square
LEAST, MOST = -100, 100  # exponents of a step: they fit in a signed byte


def grid_exponent(change: np.ndarray) -> int | None:
    """Return the exponent of the step for a change, or None if it has no grid: nothing changed, or
    it is not finite."""
    size = float(np.sqrt(np.mean(np.square(change)))) if change.size else 0.0
    if not 0 < size < np.inf:
        return None
    exponent = int(np.floor(np.log2(size))) - FINE
    return exponent if LEAST <= exponent <= MOST else None


def suits_grid(tensor: np.ndarray) -> bool:
    """Return whether a tensor is put on a grid: float16, of two or more dimensions."""
    return bool(tensor.dtype == np.float16 and tensor.ndim > 1)


def grid_codes(tensor: np.ndarray, base: np.ndarray, exponent: int) -> np.ndarray:
    """Return the steps from `base` to the nearest point of the grid (float64, whole numbers)."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.rint((_wide(tensor) - _wide(base)) * 2.0**-exponent))


def on_grid(base: np.ndarray, codes: np.ndarray, exponent: int) -> np.ndarray:
    """Return the float16 numbers that are `codes` steps from `base` (float16).

    In float64 product and sum are exact, so the only rounding is that to float16.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        whole = _wide(base) + codes.astype(np.float64) * 2.0**exponent
        return np.asarray(whole.astype(np.float16))


def nearest(tensor: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Return float16 numbers on the grid about `base` (float16, of the same shape), or as they are
    if there is no such grid."""
    with np.errstate(over="ignore", invalid="ignore"):
        change = _wide(tensor)  # one copy: a tensor may be most of a model
        change -= base
    exponent = grid_exponent(change)
    del change
    if exponent is None:
        return tensor
    found = np.empty_like(tensor)
    for at in range(len(tensor)):
        found[at] = on_grid(base[at], grid_codes(tensor[at], base[at], exponent), exponent)
    return found if np.isfinite(found).all() else tensor  # 65504 and a step is infinite


def _wide(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float64)
