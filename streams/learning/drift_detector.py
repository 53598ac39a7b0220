"""Comparison of histograms with the reference: distances, the PSI expected by chance, thresholds
and alarms, vectorized.

p and q are (..., cells), the cells' shares, each summing to 1; a distance is (...), one per pair.
The underlying counts are integers, so histograms of windows, devices and workers can be added
before a distance is computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streams.contract.window_report import ChannelDrift, DriftReport
from streams.learning.drift_reference import Reference

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


DIGITS = 6  # of the numbers in a report, which is stored with every window
REPORTED = 64  # comparisons in a report, the worst ones
METRICS = tuple(ChannelDrift.__struct_fields__)[3:-1]

Fields = dict[str, Any]


def stability_index(reference: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Return the PSI of (..., cells) counts; adds PSEUDO_COUNT to cells not empty in both."""
    return psi(raised_shares(reference, current), raised_shares(current, reference))


@dataclass(frozen=True)
class _Group:
    """The reference's features with the same number of cells, as arrays."""

    features: np.ndarray  # (f,) indices in the reference
    cells: np.ndarray  # (f, cells) indices in a vector of counts
    counts: np.ndarray  # (f, cells)
    effect: np.ndarray  # (f,)


class DriftDetector:
    """Comparison of counts with one reference."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        sizes = [len(feature.counts) for feature in reference.features]
        starts = np.cumsum([0, *sizes])
        self._groups = []
        for size in sorted(set(sizes)):
            chosen = [i for i, n in enumerate(sizes) if n == size]
            features = [reference.features[i] for i in chosen]
            group = _Group(
                np.array(chosen),
                starts[chosen][:, None] + np.arange(size),
                np.array([f.counts for f in features]),
                np.array([f.effect for f in features]),
            )
            self._groups.append(group)
        compared = [reference.features[i] for group in self._groups for i in group.features]
        self._names = [feature.channel for feature in compared]
        self._kinds = [feature.kind for feature in compared]
        channels = {name: i for i, name in enumerate(dict.fromkeys(self._names))}
        self._channels = np.zeros((len(compared), len(channels)))  # 1 where a feature is of one
        for i, name in enumerate(self._names):
            self._channels[i, channels[name]] = 1

    def fields(self, counts: np.ndarray, windows: Sequence[int]) -> list[Fields]:
        """Return the fields of the reports of (n, cells) counts; row i is the sum of windows[i]
        windows.

        The worst channel has the largest ratio of PSI to threshold. A channel has drifted if its
        mean or its spread has; the predictions count as one channel, or as one per target. With
        too few segments, or nothing to compare, there is no alarm.
        """
        held = [counts[:, group.cells] for group in self._groups]
        segments = np.zeros(len(windows), np.int64)
        for current in held:
            segments = np.maximum(segments, current.sum(axis=2).max(axis=1))
        decided = segments >= self._reference.minimum
        parts = [_compare(g, c, self._reference) for g, c in zip(self._groups, held, strict=True)]
        found = _Compared.of(parts, len(windows), decided)
        worst, present = found.worst_first(), found.counts > 0
        drifted = (found.alarm @ self._channels > 0).sum(axis=1)
        channels = (present @ self._channels > 0).sum(axis=1)
        shares = np.divide(drifted, channels, out=np.zeros(len(windows)), where=channels > 0)
        rows = zip(
            windows, segments.tolist(), decided.tolist(), shares.tolist(),
            self._told(found, worst, present.sum(axis=1)), strict=True,
        )  # fmt: skip
        return [
            {
                "windows": number,
                "segments": n,
                "decided": enough,
                "alarm": share > 0,
                "worst": told[0]["channel"] if told else None,
                "share": share,
                "channels": told[:REPORTED],
            }
            for number, n, enough, share, told in rows
        ]

    def _told(
        self, found: "_Compared", worst: np.ndarray, present: np.ndarray
    ) -> Iterator[list[Fields]]:
        """Yield the comparisons of each row with features that have values, the worst first."""
        rows = zip(
            worst.tolist(), present.tolist(), found.values.tolist(), found.counts.tolist(),
            found.alarm.tolist(), strict=True,
        )  # fmt: skip
        names, kinds = self._names, self._kinds
        for order, there, values, counts, alarm in rows:
            told: list[Fields] = []
            for i in order[: min(there, REPORTED)]:
                index, hell, variation, threshold = values[i]
                told.append(
                    {
                        "channel": names[i],
                        "kind": kinds[i],
                        "n": counts[i],
                        "psi": index,
                        "hellinger": hell,
                        "total_variation": variation,
                        "threshold": threshold,
                        "alarm": alarm[i],
                    }
                )
            yield told


@dataclass(frozen=True)
class _Compared:
    """Comparisons of n rows with f features, group after group."""

    values: np.ndarray  # (n, f, 4): METRICS
    counts: np.ndarray  # (n, f) segments with a value
    alarm: np.ndarray  # (n, f) bool

    @classmethod
    def of(cls, parts: Sequence[Sequence[np.ndarray]], n: int, decided: np.ndarray) -> "_Compared":
        if not parts:
            none = np.zeros((n, 0))
            return cls(np.zeros((n, 0, len(METRICS))), none, none > 0)
        values, counts, above = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
        return cls(np.round(values, DIGITS), counts, above & decided[:, None])

    def worst_first(self) -> np.ndarray:
        """Return (n, f) the features by PSI to threshold; those without values are last."""
        index, threshold = self.values[:, :, 0], self.values[:, :, -1]
        ratio = index / np.where(threshold, threshold, 1e-9)
        return np.argsort(np.where(self.counts > 0, -ratio, np.inf), axis=1, kind="stable")


def _compare(group: _Group, current: np.ndarray, frozen: Reference) -> Sequence[np.ndarray]:
    """Compare (n, f, cells) counts; return values (n, f, 4), counts and, each (n, f), whether PSI
    is above its threshold."""
    reference, independent = group.counts, frozen.independent
    n, m = current.sum(axis=2), reference.sum(axis=1)
    index = stability_index(reference, current)
    held = ((reference > 0) | (current > 0)).sum(axis=2)
    chance = null_percentile(held, n * independent, m * independent)
    threshold = np.maximum(group.effect, np.minimum(chance, 1e9))
    p, q = shares(reference), shares(current)
    values = (index, hellinger(p, q), total_variation(p, q), threshold)
    above = (n > 0) & (m > 0) & (index > threshold)
    return np.stack(values, axis=2), n, above


def compare(reference: Reference, counts: np.ndarray, *, windows: int) -> DriftReport:
    """Return the report of one vector of counts, the sum of `windows` windows."""
    return DriftReport.of_fields(DriftDetector(reference).fields(counts[None], [windows])[0])
