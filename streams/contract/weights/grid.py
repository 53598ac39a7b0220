"""A grid for what a version changes: float16 numbers whose distance from the served ones is a
multiple of a power of two.

The last bits of a fine-tuned float16 number are noise of the training, and noise does not compress:
they are most of a delta's bytes. So a candidate's tensors are put on a grid about their base, 16 to
32 times as fine as the root mean square of the change: the error is below 2 % of the change, and a
number takes about 7 bits of a delta. (Differences that are quantized evenly are differential
pulse-code modulation; for a federation's updates see Konecny et al. 2016.)

Vectors - biases, and the means and variances of batch norm - are left as they are: they are few
bytes, and a small variance must not come near 0.
"""

import numpy as np

FINE = 4  # the step is 2^-4 to 2^-5 of the change's root mean square
LEAST, MOST = -100, 100  # exponents of a step: they fit in a signed byte


def exponent_of(change: np.ndarray) -> int | None:
    """Return the exponent of the step for a change (float64), or None if it has no grid: nothing
    changed, or it is not finite."""
    size = float(np.sqrt(np.mean(np.square(change)))) if change.size else 0.0
    if not 0 < size < np.inf:
        return None
    exponent = int(np.floor(np.log2(size))) - FINE
    return exponent if LEAST <= exponent <= MOST else None


def suits(tensor: np.ndarray) -> bool:
    """Return whether a tensor is put on a grid: float16, of two or more dimensions."""
    return bool(tensor.dtype == np.float16 and tensor.ndim > 1)


def codes_of(tensor: np.ndarray, base: np.ndarray, exponent: int) -> np.ndarray:
    """Return the steps from `base` to the nearest point of the grid (float64, whole numbers)."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.rint((_wide(tensor) - _wide(base)) * 2.0**-exponent))


def at(base: np.ndarray, codes: np.ndarray, exponent: int) -> np.ndarray:
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
        exponent = exponent_of(_wide(tensor) - _wide(base))
    if exponent is None:
        return tensor
    found = at(base, codes_of(tensor, base, exponent), exponent)
    return found if np.isfinite(found).all() else tensor  # 65504 and a step is infinite


def _wide(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float64)
