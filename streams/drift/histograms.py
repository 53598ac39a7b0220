"""The histograms that a report carries: of the features that have drifted most. Pure.

A report has what its histograms are compared with beside them, so that a reader needs neither the
artifact with the reference nor the store with the counts.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from streams.contract.window_report import ChannelDrift, FeatureHistogram
from streams.drift.reference import Reference

HISTOGRAMS = 4  # features in a report
CELLS = 64  # of a feature; one with more has its distances alone
DIGITS = 6  # of an edge


class Histograms:
    """Chooses the histograms of reports against one reference."""

    def __init__(self, reference: Reference) -> None:
        self._found: dict[tuple[str, str], tuple[int, int, dict[str, Any]]] = {}
        start = 0
        for feature in reference.features:
            end = start + len(feature.counts)
            if len(feature.counts) <= CELLS:
                template = FeatureHistogram(
                    channel=feature.channel,
                    kind=feature.kind,
                    ordered=feature.ordered,
                    edges=[float(f"{edge:.{DIGITS}g}") for edge in feature.edges],
                    reference=feature.counts,
                    counts=[],
                )
                self._found[feature.channel, feature.kind] = start, end, dict(template)
            start = end

    def of(self, counts: np.ndarray, worst: Sequence[ChannelDrift]) -> list[FeatureHistogram]:
        """Return the histograms of the first HISTOGRAMS features of `worst` that have at most CELLS
        cells; counts: (cells,), those that the comparison was made of."""
        names = [(drift.channel, drift.kind) for drift in worst]
        return [FeatureHistogram.model_construct(**each) for each in self.fields(counts, names)]

    def fields(self, counts: np.ndarray, worst: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
        """Return the histograms' fields as `of`; worst: channels and kinds of features."""
        chosen: list[dict[str, Any]] = []
        for name in worst:
            found = self._found.get(name)
            if found is None:
                continue
            start, end, template = found
            chosen.append({**template, "counts": counts[start:end].tolist()})
            if len(chosen) == HISTOGRAMS:
                break
        return chosen
