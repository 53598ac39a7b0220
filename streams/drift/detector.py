"""Comparison of histograms with the reference: distances, thresholds and alarms, vectorized."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streams.contract.window_report import ChannelDrift, DriftReport
from streams.drift.distances import (
    hellinger,
    jensen_shannon,
    kolmogorov_smirnov,
    null_percentile,
    psi,
    raised_shares,
    shares,
    total_variation,
    wasserstein,
)
from streams.drift.reference import Reference

DIGITS = 6  # of the numbers in a report, which is stored with every window
REPORTED = 64  # comparisons in a report, the worst ones
UNORDERED = {"kolmogorov_smirnov": None, "wasserstein": None}  # of a feature that has no order


def stability_index(reference: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Return the PSI of (..., cells) counts; adds PSEUDO_COUNT to cells not empty in both."""
    return psi(raised_shares(reference, current), raised_shares(current, reference))


@dataclass(frozen=True)
class _Group:
    """The reference's features with the same number of cells, as arrays."""

    features: np.ndarray  # (f,) indices in the reference
    cells: np.ndarray  # (f, cells) indices in a vector of counts
    counts: np.ndarray  # (f, cells)
    edges: np.ndarray  # (f, cells - 3)
    ordered: np.ndarray  # (f,) bool
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
                np.array([f.edges for f in features]),
                np.array([f.ordered for f in features]),
                np.array([f.effect for f in features]),
            )
            self._groups.append(group)

    def reports(self, counts: np.ndarray, windows: Sequence[int]) -> list[DriftReport]:
        """Return the reports of (n, cells) counts; row i is the sum of windows[i] windows.

        The worst channel has the largest ratio of PSI to threshold. A channel has drifted if its
        mean or its spread has; the predictions count as one channel, or as one per target. With
        too few segments, or nothing to compare, there is no alarm.
        """
        found: list[list[ChannelDrift]] = [[] for _ in windows]
        segments = np.zeros(len(windows), np.int64)
        for group in self._groups:
            segments = np.maximum(segments, counts[:, group.cells].sum(axis=2).max(axis=1))
        decided = segments >= self._reference.minimum
        for group in self._groups:
            self._compare(group, counts[:, group.cells], decided, found)
        return [
            _report(drifts, *row)
            for drifts, *row in zip(
                found, windows, segments.tolist(), decided.tolist(), strict=True
            )
        ]

    def _compare(
        self,
        group: _Group,
        current: np.ndarray,
        decided: np.ndarray,
        found: list[list[ChannelDrift]],
    ) -> None:
        """Add the comparisons of (n, f, cells) counts to the n lists of `found`."""
        reference, independent = group.counts, self._reference.independent
        n, m = current.sum(axis=2), reference.sum(axis=1)
        index = stability_index(reference, current)
        held = ((reference > 0) | (current > 0)).sum(axis=2)
        chance = null_percentile(held, n * independent, m * independent)
        threshold = np.maximum(group.effect, np.minimum(chance, 1e9))
        p, q = shares(reference), shares(current)
        inner, outer = shares(reference[:, :-2]), shares(current[:, :, :-2])  # finite values only
        ordered = group.ordered & inner.any(axis=1) & outer.any(axis=2)
        alarm = decided[:, None] & (n > 0) & (m > 0) & (index > threshold)
        metrics = {
            "psi": index,
            "jensen_shannon": jensen_shannon(p, q),
            "hellinger": hellinger(p, q),
            "total_variation": total_variation(p, q),
            "kolmogorov_smirnov": kolmogorov_smirnov(inner, outer),
            "wasserstein": wasserstein(inner, outer, group.edges),
            "threshold": threshold,
        }
        rounded = np.round(np.stack(list(metrics.values()), axis=2), DIGITS).tolist()
        features = [self._reference.features[i] for i in group.features]
        rows = zip(found, rounded, n.tolist(), ordered.tolist(), alarm.tolist(), strict=True)
        for drifts, *row in rows:
            for feature, values, count, is_ordered, alarmed in zip(features, *row, strict=True):
                if count:
                    given = dict(zip(metrics, values, strict=True))
                    given |= {"channel": feature.channel, "kind": feature.kind, "n": count}
                    given |= {} if is_ordered else UNORDERED
                    drifts.append(ChannelDrift.model_construct(alarm=alarmed, **given))


def _report(drifts: list[ChannelDrift], windows: int, segments: int, decided: bool) -> DriftReport:
    drifts.sort(key=lambda drift: -drift.psi / (drift.threshold or 1e-9))
    channels = {drift.channel for drift in drifts}
    drifted = {drift.channel for drift in drifts if drift.alarm}
    return DriftReport.model_construct(
        windows=windows,
        segments=segments,
        decided=decided,
        alarm=bool(drifted),
        worst=drifts[0].channel if drifts else None,
        share=len(drifted) / len(channels) if channels else 0.0,
        channels=drifts[:REPORTED],
    )


def compare(reference: Reference, counts: np.ndarray, *, windows: int) -> DriftReport:
    """Return the report of one vector of counts, the sum of `windows` windows."""
    return DriftDetector(reference).reports(counts[None], [windows])[0]
