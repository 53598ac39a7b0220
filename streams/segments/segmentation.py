"""Cutting a stream of readings into segments.

Readings are rows of a buffer a few segments long. A full segment is copied out once, channel by
channel, as the model takes it; the next one begins `hop` rows later. Rows that are still needed are
moved to the front only when the buffer is full.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from streams.contract.task import Reading, Readings, Task
from streams.contract.task.channels import complete, given, is_plain, numbers

SEGMENTS_BUFFERED = 8


Cut = tuple[int, int, np.ndarray, np.ndarray | None]
Skip = Callable[[str, int], None]

OUT_OF_ORDER, LABEL_UNFIT = "out-of-order", "label-unfit"
NEVER_US = -(2**62)
IRREGULAR = frozenset({OUT_OF_ORDER, LABEL_UNFIT})  # said of readings that are used all the same


def segments_of(
    readings: Iterable[Reading | Readings], task: Task, *, skip: Skip | None = None
) -> Iterator[Cut]:
    """Cut readings into segments; see Segmenter."""
    segmenter = Segmenter(task, skip)
    for reading in readings:
        if isinstance(reading, Readings):
            yield from segmenter.take(reading)
        elif (cut := segmenter.push(reading)) is not None:
            yield cut


class Segmenter:
    """Cuts the readings of one device as they come.

    A segment never spans a gap of more than `Task.max_gap_us`, a step back in time, or a reading
    with a wrong number of values, a non-finite value or one that is not of its channel; each calls
    `skip(reason, time_us)`.
    Readings of one time are in order. The IRREGULAR reasons are of readings that are used all the
    same: one that is earlier than the one before, between two segments, and one whose label is
    not one of the task's, which is used without it.
    """

    def __init__(self, task: Task, skip: Skip | None = None) -> None:
        channels, samples = task.segment_shape
        self._task, self._skip = task, skip
        self._channels, self._samples, self._hop = channels, samples, task.segment.hop
        self._max_gap_us = task.max_gap_us
        self._plain, self._given = is_plain(task.channels), given(task.channels)
        self._buffer = np.empty((SEGMENTS_BUFFERED * samples, channels), dtype=np.float32)
        self._begin = 0  # of the segment being filled
        self._last_us = NEVER_US  # time of the reading before
        self._times: list[int] = []
        self._new: list[Sequence[float]] = []  # the last rows, which the buffer does not have yet
        self._labels: list[float | Sequence[float] | None] = []

    @property
    def pending(self) -> list[Reading]:
        """The readings of the segment being filled. Another segmenter whose `push_numbers` is given
        them first cuts what follows in the same way."""
        self._fill()
        rows = self._buffer[self._begin : self._begin + len(self._times)].tolist()
        return [Reading(*one) for one in zip(self._times, rows, self._labels, strict=True)]

    @property
    def last_us(self) -> int:
        """The time of the last reading; NEVER_US before the first."""
        return self._last_us

    def begin_after(self, time_us: int) -> None:
        """Take what comes as after a reading of this time, of which no segment needs the values."""
        self._last_us = time_us

    def push(self, reading: Reading) -> Cut | None:
        """Take a reading; return the segment that it ends: first time, last time, segment
        (channels, samples) float32, and label (label_size,) or None."""
        if not self._plain and len(reading.values) == len(self._given):
            try:
                found = numbers(self._given, reading.values)
            except (TypeError, ValueError, OverflowError):
                return self.push_numbers(reading._replace(values=[math.nan] * self._channels))
            return self.push_numbers(reading._replace(values=self.completed(reading, found)))
        return self.push_numbers(reading)

    def completed(self, reading: Reading, found: Sequence[float]) -> tuple[float, ...]:
        """Return a reading's numbers with those that follow from its time."""
        before_us = self._last_us if self._last_us > NEVER_US else None
        return complete(self._task.channels, found, reading.time_us, before_us)

    def push_numbers(self, reading: Reading) -> Cut | None:
        """Take a reading whose values are one number a channel, as those of `pending`."""
        times, samples, (time_us, values, label) = self._times, self._samples, reading
        broken = _fault(reading, times, self._max_gap_us, self._channels)
        if broken:
            self._count(broken, reading)
            times.clear()
            self._labels.clear()
            self._new.clear()
            if broken not in ("gap", "backwards"):
                return None
        elif time_us < self._last_us:
            self._count(OUT_OF_ORDER, reading)
        if label is not None and not label_fits(self._task, label):
            self._count(LABEL_UNFIT, reading)
        self._last_us = time_us
        self._new.append(tuple(values))  # a source may use its list again
        times.append(time_us)
        self._labels.append(label)
        return self._cut() if len(times) == samples else None

    def take(self, block: Readings) -> Iterator[Cut]:
        """Take many readings; yield the segments that they end, as `push` of each would."""
        if not self._is_plain(block):
            yield from filter(None, map(self.push, block.each()))
            return
        self._fill()
        times, at = block.times_us.tolist(), 0
        while at < len(times):
            count = min(self._samples - len(self._times), len(times) - at)
            end = self._begin + len(self._times)
            self._buffer[end : end + count] = block.values[at : at + count]
            self._times += times[at : at + count]
            self._labels += [block.label] * count
            at += count
            if len(self._times) == self._samples:
                yield self._cut()
        self._last_us = times[-1]

    def _is_plain(self, block: Readings) -> bool:
        """Return whether nothing in a block is skipped, irregular or between two segments."""
        times, values, label = block
        if not self._plain or not len(times) or values.shape != (len(times), self._channels):
            return False
        before = self._times[-1] if self._times else max(self._last_us, int(times[0]))
        steps = np.diff(times, prepend=before)
        return bool(
            steps.min() >= 0
            and steps.max() <= self._max_gap_us
            and times[0] >= self._last_us
            and np.isfinite(values).all()
            and (label is None or label_fits(self._task, label))
        )

    def _cut(self) -> Cut:
        times, samples = self._times, self._samples
        self._fill()
        segment = self._buffer[self._begin : self._begin + samples].T.copy()
        cut = times[0], times[-1], segment, _segment_label(self._labels, self._task)
        self._begin += self._hop
        del times[: self._hop], self._labels[: self._hop]
        if self._begin + samples > len(self._buffer):
            moved = self._buffer[self._begin : self._begin + len(times)].copy()
            self._buffer[: len(times)] = moved
            self._begin = 0
        return cut

    def _fill(self) -> None:
        """Put the new rows into the buffer, at once: an array of many is made faster than many."""
        if self._new:
            end = self._begin + len(self._times)
            self._buffer[end - len(self._new) : end] = self._new
            self._new.clear()

    def _count(self, reason: str, reading: Reading) -> None:
        if self._skip is not None:
            self._skip(reason, reading.time_us)


def _fault(reading: Reading, times: list[int], max_gap_us: float, channels: int) -> str | None:
    if len(reading.values) != channels:
        return "width"
    if not math.isfinite(sum(reading.values)) and not all(map(math.isfinite, reading.values)):
        return "not-finite"
    if times and reading.time_us < times[-1]:
        return "backwards"
    if times and reading.time_us - times[-1] > max_gap_us:
        return "gap"
    return None


def label_fits(task: Task, label: object) -> bool:
    """Return whether a label is a class index, or a finite value for every target."""
    if task.classes and isinstance(label, int | float):  # the usual one, of every reading
        return 0 <= label < task.outputs and label % 1 == 0
    try:
        with np.errstate(over="ignore"):  # it becomes infinite, which fits nothing
            values = np.asarray(label, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError):
        return False
    if isinstance(label, str | bytes) or len(values) != task.label_size:
        return False
    if task.classes:
        return bool(0 <= values[0] < task.outputs and values[0] % 1 == 0)
    return bool(np.isfinite(values).all())


def _segment_label(labels: list[float | Sequence[float] | None], task: Task) -> np.ndarray | None:
    """Return a segment's label (label_size,), derived from its readings' labels."""
    enough = task.segment.label_share * len(labels)
    if task.targets or not task.segment.label_share:
        known = sum(label_fits(task, label) for label in labels)
        if known < enough or not label_fits(task, labels[-1]):
            return None  # an earlier reading's value would be that of another time
        return np.asarray(labels[-1], np.float32).reshape(-1)
    counts = Counter(_single(label) for label in labels)
    for label, count in counts.most_common(1):
        if count >= enough and label_fits(task, label):
            return np.asarray([label], dtype=np.float32)
    return None


def _single(label: float | Sequence[float] | None) -> float | None:
    """Return a class index that may be inside a list of one."""
    if label is None or isinstance(label, int | float):  # the usual one; `Sequence` is slow to ask
        return label
    if isinstance(label, Sequence):
        return label[0] if len(label) == 1 else None
    return label
