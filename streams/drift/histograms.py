"""The histograms that a report carries: of the features that have drifted most. Pure.

A report has what its histograms are compared with beside them, so that a reader needs neither the
artifact with the reference nor the store with the counts.
"""

from collections.abc import Sequence

import numpy as np

from streams.contract.window_report import ChannelDrift, FeatureHistogram
from streams.drift.reference import Reference

HISTOGRAMS = 4  # features in a report
CELLS = 64  # of a feature; one with more has its distances alone
DIGITS = 6  # of an edge


class Histograms:
    """Chooses the histograms of reports against one reference."""

    def __init__(self, reference: Reference) -> None:
        self._found: dict[tuple[str, str], tuple[int, int, FeatureHistogram]] = {}
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
                self._found[feature.channel, feature.kind] = start, end, template
            start = end

    def of(self, counts: np.ndarray, worst: Sequence[ChannelDrift]) -> list[FeatureHistogram]:
        """Return the histograms of the first HISTOGRAMS features of `worst` that have at most CELLS
        cells; counts: (cells,), those that the comparison was made of."""
        chosen: list[FeatureHistogram] = []
        for drift in worst:
            found = self._found.get((drift.channel, drift.kind))
            if found is None:
                continue
            start, end, template = found
            chosen.append(template.model_copy(update={"counts": counts[start:end].tolist()}))
            if len(chosen) == HISTOGRAMS:
                break
        return chosen
