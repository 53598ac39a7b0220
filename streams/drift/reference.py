"""Drift of a device's inputs and answers against the reference frozen in an artifact. No torch.

**What is counted.** Successive samples of a sensor are strongly correlated: 3,000 of them are no
3,000 observations, and every null distribution for independent samples would alarm on everything.
So a segment gives one observation per channel and statistic: the mean of its samples, and their
standard deviation ("spread"). Segments overlap; where a new one begins every `hop` samples,
n segments count as n * hop / samples independent ones. The answers give one more: the class of each
answer, or the value of each target.

**Over what.** What somebody does differs from window to window far more than a sensor drifts, so a
single window decides nothing. Windows are summed, by integer addition of their histograms, over the
last `Reference.windows` (WINDOWS) of a device, and nothing is decided below MINIMUM segments.

**When it alarms.** Where PSI is above both the null distribution's 99th percentile for these sample
sizes and the channel's effect threshold. People and machines differ without anything having
drifted; how much is seen in the reference itself: its devices are each compared, over as many
windows, with all the others, and the largest PSI found, times MARGIN, is the channel's effect
threshold, EFFECT at least. The cells are few and wide (BINS between the TAIL quantiles) so that
such differences mostly stay within a cell. `federation.bootstrap.drift_reference`
makes the reference; WINDOWS,
MINIMUM, BINS, TAIL and MARGIN were chosen on the built-in data, see docs/ARCHITECTURE.md.

**Cells** of a histogram, in order: below the first edge, between the edges, from the last edge on,
null (NaN), not finite (infinite). Edges are float64 and fixed, counts int64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from streams.contract.documents import Document
from streams.contract.task import Task

WINDOWS = 12
MINIMUM = 150  # segments below which nothing is decided, where windows usually hold twice that
EFFECT = 0.25  # the usual rule of credit scoring: "the population has changed"
MARGIN = 2.0
BINS, TAIL = 4, 0.03
CHANNELS = 256  # input channels that are watched, the first of the task

Kind = Literal["mean", "spread", "answer"]


def cells_of(edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(n,) which cell each value falls into."""
    cells = np.searchsorted(edges, values, side="right")
    cells[np.isnan(values)] = len(edges) + 1
    cells[np.isinf(values)] = len(edges) + 2
    return np.asarray(cells)


@dataclass(frozen=True)
class Histogram:
    """Counts over fixed edges: edges (k,) float64, counts (k + 3,) int64."""

    edges: np.ndarray
    counts: np.ndarray

    @classmethod
    def empty(cls, edges: Sequence[float] | np.ndarray) -> Self:
        found = np.asarray(edges, np.float64)
        return cls(found, np.zeros(len(found) + 3, np.int64))

    def add(self, values: Sequence[float | None] | np.ndarray) -> "Histogram":
        """The histogram with these values counted as well; None and NaN are null."""
        cells = cells_of(self.edges, np.asarray(values, np.float64).reshape(-1))
        counted = np.bincount(cells, minlength=len(self.counts)).astype(np.int64)
        return Histogram(self.edges, self.counts + counted)

    def merge(self, other: "Histogram") -> "Histogram":
        """Both together; ValueError where the edges differ."""
        if not np.array_equal(self.edges, other.edges):
            raise ValueError("histograms over different edges do not add up")
        return Histogram(self.edges, self.counts + other.counts)

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    def to_document(self) -> dict[str, list[float] | list[int]]:
        """As JSON takes it."""
        return {"edges": self.edges.tolist(), "counts": self.counts.tolist()}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        edges = np.asarray(document["edges"], np.float64)
        return cls(edges, np.asarray(document["counts"], np.int64))


class Feature(Document):
    """One compared quantity of the reference; `effect` is the PSI below which nothing alarms.

    `ordered` is False for classes, between which there is no distance.
    """

    channel: str
    kind: Kind
    ordered: bool = True
    edges: list[float] = Field(min_length=2, max_length=10_001)
    counts: list[int]
    effect: float = Field(default=EFFECT, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        edges = np.asarray(self.edges)
        if not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
            raise ValueError("edges must be finite and rise")
        if len(self.counts) != len(self.edges) + 3 or not all(0 <= n < 2**53 for n in self.counts):
            raise ValueError("there must be a count for every cell, none below 0")
        return self

    @property
    def histogram(self) -> Histogram:
        return Histogram.from_document({"edges": self.edges, "counts": self.counts})


class Reference(Document):
    """What an artifact freezes as `drift.json`: the data that its first model was made for.

    `independent` is how many independent observations one segment is worth (hop / samples).
    """

    format: Literal[1] = 1
    windows: int = Field(default=WINDOWS, ge=1)
    minimum: int = Field(default=MINIMUM, ge=1)
    independent: float = Field(gt=0, le=1)
    features: list[Feature]

    @property
    def cells(self) -> int:
        """Cells of all features: the length of a vector of counts."""
        return sum(len(feature.counts) for feature in self.features)

    def count(self, observations: "Observations") -> np.ndarray:
        """(cells,) int64 of some segments, feature after feature; 0 for what is not observed."""
        return np.asarray(self.count_by(observations, None, 1)[0])

    def count_by(
        self, observations: "Observations", owner: np.ndarray | None, owners: int
    ) -> np.ndarray:
        """(owners, cells) as `count`; owner (n,) is the row to which each segment counts."""
        parts = [np.zeros((owners, 0), np.int64)]
        for feature in self.features:
            size = len(feature.counts)
            values = observations.get((feature.channel, feature.kind))
            if values is None:
                parts.append(np.zeros((owners, size), np.int64))
                continue
            cells = cells_of(np.asarray(feature.edges), values)
            cells = cells if owner is None else cells + size * owner
            counted = np.bincount(cells, minlength=owners * size)
            parts.append(counted.reshape(owners, size).astype(np.int64))
        return np.concatenate(parts, axis=1)

    def split(self, counts: np.ndarray) -> Iterator[tuple[Feature, Histogram]]:
        """The histogram of each feature from a vector of counts."""
        at = 0
        for feature in self.features:
            size = len(feature.counts)
            yield feature, Histogram(np.asarray(feature.edges), counts[at : at + size])
            at += size


Observations = dict[tuple[str, Kind], np.ndarray]


def observe(task: Task, segments: np.ndarray | None, outputs: np.ndarray) -> Observations:
    """What segments (n, channels, samples) and answers (n, outputs) give to count, (n,) each.

    `segments` is None where the task lets none leave the device: then answers alone are observed.
    """
    found: Observations = {}
    if segments is not None:
        means = segments.mean(axis=2, dtype=np.float64)
        centred = segments - means[:, :, None].astype(segments.dtype)
        squares = np.einsum("ncs,ncs->nc", centred, centred, dtype=np.float64)
        spreads = np.sqrt(squares / segments.shape[2])
        for i, channel in enumerate(task.channels[:CHANNELS]):
            found[channel, "mean"], found[channel, "spread"] = means[:, i], spreads[:, i]
    if task.classes:
        found["predictions", "answer"] = outputs.argmax(axis=1).astype(np.float64)
    for i, target in enumerate(task.targets):
        found[f"predictions {target}", "answer"] = outputs[:, i].astype(np.float64)
    return found


def minimum_segments(task: Task) -> int:
    """MINIMUM, or half of what WINDOWS windows of the task hold where that is less."""
    held = WINDOWS * task.segments_per_window
    return max(1, min(MINIMUM, round(held / 2)))


def frozen_edges(task: Task, kind: Kind, values: np.ndarray) -> np.ndarray:
    """The edges for a feature whose reference values are these: one cell per class, or BINS of
    equal width between the TAIL quantiles."""
    if kind == "answer" and task.classes:
        return np.arange(task.outputs + 1) - 0.5
    known = values[np.isfinite(values)]
    low, high = np.quantile(known, [TAIL, 1 - TAIL]) if len(known) else (0.0, 0.0)
    least = max(abs(low), abs(high), 1e-6) * 1e-6  # a constant channel has a cell of its own
    if high - low < least:
        low, high = low - least, high + least
    return np.linspace(low, high, BINS + 1)
