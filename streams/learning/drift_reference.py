"""Drift of a device's inputs and answers from the reference in an artifact. No torch.

**Observations.** Successive samples of a sensor are strongly correlated, so tests for independent
samples would always alarm. A segment therefore gives one observation per channel and statistic: the
mean of its samples and their standard deviation ("spread"). Segments overlap: with a new one every
`hop` samples, n segments count as n * hop / samples independent ones. A category gives the index of
its last sample; hour and weekday give nothing, because a few windows do not have all of them. The
answers give one more: the class of each answer, or the value of each target.

**Windows.** Behaviour differs between windows far more than a sensor drifts. Histograms are
therefore added up over a device's last `Reference.windows` (WINDOWS), and there is no alarm below
`Reference.minimum` (`minimum_segments`) segments.

**Alarm.** PSI must exceed both the null distribution's 99th percentile for these sample sizes and
the channel's effect threshold. People and machines differ without drift; the reference shows how
much: each of its devices is compared, over as many windows, with all the others. The largest PSI
found, times MARGIN, is the channel's effect threshold, at least EFFECT. Cells are few and wide
(BINS between the TAIL quantiles), so that such differences mostly stay within a cell.
`federation.bootstrap.dataset` builds the reference. WINDOWS, MINIMUM, BINS, TAIL and MARGIN
were chosen on the built-in data, see docs/decisions.md, decision 11.

**Cells** of a histogram, in order: below the first edge, between the edges, from the last edge on,
null (NaN), not finite (infinite). Edges are float64 and fixed, counts int64. Of a category the
FREQUENT most frequent indices have a cell each, and what lies between two of them has one.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from streams.contract.artifact import DRIFT, Artifact
from streams.contract.documents import Document
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.task import Task
from streams.contract.task.channels import Category, Time, is_plain

WINDOWS = 8
MINIMUM = 100  # segments needed for an alarm; WINDOWS windows usually hold twice as many
EFFECT = 0.25  # the usual threshold of credit scoring for "the population has changed"
MARGIN = 1.75
BINS, TAIL = 4, 0.03
FREQUENT = 8
BLOCK_NUMBERS = 100_000  # of segments that are summed up at once
CHANNELS = 256  # input channels that are watched: the task's first ones

Kind = Literal["mean", "spread", "category", "answer"]


def cells_of(edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return (n,) the cell index of each value."""
    cells = np.searchsorted(edges, values, side="right")
    cells[np.isnan(values)] = len(edges) + 1
    cells[np.isinf(values)] = len(edges) + 2
    return np.asarray(cells)


class Feature(Document):
    """One compared quantity of the reference; `effect` is the lowest PSI that can alarm.

    `ordered` is False for classes, which have no distance.
    """

    channel: str
    kind: Kind
    ordered: bool = True
    edges: Annotated[list[float], Meta(min_length=2, max_length=10_001)]
    counts: list[int]
    effect: Annotated[float, Meta(ge=0)] = EFFECT

    def __post_init__(self) -> None:
        edges = np.asarray(self.edges)
        if not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
            raise ValueError("edges must be finite and increasing")
        if len(self.counts) != len(self.edges) + 3 or not all(0 <= n < 2**53 for n in self.counts):
            raise ValueError("every cell needs a count, none below 0")

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and variance of the finite observations, each at the middle of its cell."""
        edges, counts = np.asarray(self.edges), np.asarray(self.counts[:-2], np.float64)
        middles = np.concatenate([edges[:1], (edges[1:] + edges[:-1]) / 2, edges[-1:]])
        shares = counts / max(counts.sum(), 1.0)
        mean = float(shares @ middles)
        return mean, float(shares @ (middles - mean) ** 2)


class Reference(Document):
    """The file `drift.json` of an artifact: statistics of the first model's training data.

    `independent` is the number of independent observations per segment (hop / samples).
    """

    format: Literal[1] = 1
    windows: Annotated[int, Meta(ge=1)] = WINDOWS
    minimum: Annotated[int, Meta(ge=1)] = MINIMUM
    independent: Annotated[float, Meta(gt=0, le=1)]
    features: list[Feature]

    @property
    def cells(self) -> int:
        """The number of cells of all features: the length of a vector of counts."""
        return sum(len(feature.counts) for feature in self.features)

    def count(self, observations: "Observations") -> np.ndarray:
        """Return (cells,) int64 counts, feature after feature; 0 for missing observations."""
        return np.asarray(self.count_by(observations, None, 1)[0])

    def count_by(
        self, observations: "Observations", owner: np.ndarray | None, owners: int
    ) -> np.ndarray:
        """Return (owners, cells) counts as `count`; owner (n,) is the row of each segment."""
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

    def inputs(self, channels: Sequence[str]) -> list[tuple[float, float]]:
        """Return mean and variance of each channel's values, from the middles of its cells; nothing
        where one is not observed."""
        found = []
        known = {(feature.channel, feature.kind): feature for feature in self.features}
        for channel in channels:
            if not {(channel, "mean"), (channel, "spread")} <= known.keys():
                return []
            (mean, variance), (spread, spreads) = (
                known[channel, kind].moments for kind in ("mean", "spread")
            )
            found.append((mean, variance + spread**2 + spreads))
        return found

    def split(self, counts: np.ndarray) -> list[np.ndarray]:
        """Return the features' parts of a vector of counts."""
        return np.split(counts, np.cumsum([len(f.counts) for f in self.features]))[:-1]


def reference_of(artifact: Artifact, where: str = "") -> Reference | None:
    """Return the reference of an artifact, which is at `where`; None if it has none. Raises
    ArtifactError for a bad one."""
    if DRIFT not in artifact.files:
        return None
    try:
        return Reference.decode(artifact.files[DRIFT])
    except MalformedRecord as exc:
        raise ArtifactError("drift", f"{where or artifact.model}: {exc}") from exc


Observations = dict[tuple[str, Kind], np.ndarray]


def observe(
    task: Task, segments: np.ndarray | Sequence[np.ndarray] | None, outputs: np.ndarray
) -> Observations:
    """Return the observations, (n,) each, of segments (n, channels, samples), in one array or in
    several, and answers (n, outputs). `segments` is None if the task does not upload them.
    """
    found: Observations = {}
    if segments is not None:
        means, spreads = _means_and_spreads(segments, len(task.channels))
        last = [part[:, :, -1] for part in _blocks(segments)] if not is_plain(task.channels) else []
        for i, channel in enumerate(task.channels[:CHANNELS]):
            if isinstance(channel, Category):
                found[channel, "category"] = np.concatenate([np.zeros(0), *(p[:, i] for p in last)])
            elif not isinstance(channel, Time) or channel == "since":
                found[channel, "mean"], found[channel, "spread"] = means[:, i], spreads[:, i]
    if task.classes:
        found["predictions", "answer"] = task.answers(outputs).astype(np.float64)
    for i, target in enumerate(task.targets):
        found[f"predictions {target}", "answer"] = outputs[:, i].astype(np.float64)
    return found


def _means_and_spreads(
    segments: np.ndarray | Sequence[np.ndarray], channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """(n, channels, samples) -> mean and standard deviation (n, channels) float64, block by block:
    what is made of a block stays in the processor's cache."""
    means, spreads, held = [np.zeros((0, channels))], [np.zeros((0, channels))], np.empty(0)
    for block in _blocks(segments):
        if held.size < block.size or held.dtype != block.dtype:
            held = np.empty(block.size, block.dtype)
        mean = block.mean(axis=2, dtype=np.float64)
        centred = held[: block.size].reshape(block.shape)
        np.subtract(block, mean[:, :, None].astype(block.dtype), out=centred)
        with np.errstate(over="ignore"):  # a spread that is infinite has drifted
            squares = np.vecdot(centred, centred)  # in its type: a tenth of the time
        means.append(mean)
        spreads.append(np.sqrt(squares.astype(np.float64) / block.shape[2]))
    return np.concatenate(means), np.concatenate(spreads)


def _blocks(segments: np.ndarray | Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the segments in blocks of at most BLOCK_NUMBERS numbers, or of one segment."""
    if isinstance(segments, np.ndarray):
        size = max(1, BLOCK_NUMBERS // max(1, segments.shape[1] * segments.shape[2]))
        for at in range(0, len(segments), size):
            yield segments[at : at + size]
        return
    waiting: list[np.ndarray] = []
    for part in segments:
        if waiting and sum(each.size for each in waiting) + part.size > BLOCK_NUMBERS:
            yield from _blocks(np.concatenate(waiting))
            waiting = []
        waiting.append(part)
    if waiting:
        yield from _blocks(np.concatenate(waiting))


def minimum_segments(task: Task, seen: float) -> int:
    """Return MINIMUM, or half the segments of WINDOWS windows of the task if that is less; seen:
    the mean window of the quietest device. Chance explains every PSI of fewer than WINDOWS."""
    held = WINDOWS * max(task.segments_per_window, seen)  # which is 1 where events have no rate
    return max(WINDOWS, min(MINIMUM, round(held / 2)))


def frozen_edges(task: Task, kind: Kind, values: np.ndarray) -> np.ndarray:
    """Return a feature's edges from its reference values: one cell per class, cells around frequent
    categories, or BINS cells of equal width between the TAIL quantiles."""
    if kind == "answer" and task.classes:
        return np.arange(task.outputs + 1) - 0.5
    if kind == "category":
        indices, counts = np.unique(values, return_counts=True)
        frequent = indices[np.argsort(-counts, kind="stable")[:FREQUENT]]
        around = np.concatenate([frequent - 0.5, frequent + 0.5])
        return np.unique(around) if len(around) else np.array([-0.5, 0.5])
    known = values[np.isfinite(values)]
    low, high = np.quantile(known, [TAIL, 1 - TAIL]) if len(known) else (0.0, 0.0)
    least = max(abs(low), abs(high), 1e-6) * 1e-6  # a constant channel has a cell of its own
    if high - low < least:
        low, high = low - least, high + least
    return np.linspace(low, high, BINS + 1)
