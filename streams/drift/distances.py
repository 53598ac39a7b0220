"""Distances between histograms over the same cells, and the PSI expected by chance. Pure numpy.

p and q are (..., cells), the cells' shares, each summing to 1; a distance is (...), one per pair.
The underlying counts are integers, so histograms of windows, devices and workers can be added
before a distance is computed.
"""

import numpy as np

PSEUDO_COUNT = 0.5  # added on both sides: an empty cell would make PSI infinite

Z_99 = 2.3263478740408408  # the normal distribution's 99th percentile
Z_99_TWO_SIDED = 2.5758293035489004  # chi-square of 1 degree is a squared normal variable


def shares(counts: np.ndarray) -> np.ndarray:
    """Return (..., cells) shares of (..., cells) counts; zeros if all counts are zero."""
    total = counts.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0))


def raised_shares(counts: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return shares after adding PSEUDO_COUNT to every cell that is not empty in both counts."""
    held = (counts > 0) | (others > 0)
    return shares(np.where(held, counts + PSEUDO_COUNT, 0.0))


def psi(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Population stability index: sum of (p - q) ln(p / q), the Jeffreys divergence, in nats.

    Source: Siddiqi, Credit Risk Scorecards (2006); Jeffreys (1946). From 0 to infinity, symmetric.
    A cell that is empty on both sides adds nothing, one that is empty on one side adds infinity.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = (p - q) * (np.log(p) - np.log(q))
    return np.asarray(np.where((p > 0) | (q > 0), terms, 0.0).sum(axis=-1))


def hellinger(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Hellinger distance: sqrt(sum of (sqrt p - sqrt q)^2 / 2). Source: Hellinger (1909).

    A metric without a unit, from 0 to 1 (no cell in common).
    """
    return np.asarray(np.sqrt(np.sum((np.sqrt(p) - np.sqrt(q)) ** 2, axis=-1) / 2))


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Total variation: sum of |p - q| / 2, the share of mass that has moved.

    A metric without a unit, from 0 to 1 (no cell in common).
    """
    return np.asarray(np.sum(np.abs(p - q), axis=-1) / 2)


def chi_square_99(freedom: np.ndarray | int) -> np.ndarray:
    """Return the 99th percentile of chi-square by Wilson and Hilferty (1931); 0 for 0 degrees.

    Exact for 1 degree of freedom, within 1 % from 2 degrees on.
    """
    degrees = np.asarray(freedom, np.float64)
    spread = 2 / (9 * np.maximum(degrees, 1))
    found = degrees * (1 - spread + Z_99 * np.sqrt(spread)) ** 3
    return np.where(degrees < 1, 0.0, np.where(degrees == 1, Z_99_TWO_SIDED**2, found))


def null_percentile(
    cells: np.ndarray | int, n: np.ndarray | float, m: np.ndarray | float
) -> np.ndarray:
    """Return the 99th percentile of PSI between two independent samples of one distribution.

    For sample sizes n and m PSI is about (1/n + 1/m) times a chi-square with cells - 1 degrees of
    freedom. Source: Yurdakul and Naranjo, Statistical properties of the population stability index
    (2020). Infinite if a sample is empty.
    """
    n, m = np.asarray(n, np.float64), np.asarray(m, np.float64)
    empty = (n <= 0) | (m <= 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (1 / n + 1 / m) * chi_square_99(np.asarray(cells) - 1)
    return np.where(empty, np.inf, found)
