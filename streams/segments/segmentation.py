"""Cutting a stream of readings into segments.

Readings are rows of a buffer a few segments long. A full segment is copied out once, channel by
channel, as the model takes it; the next one begins `hop` rows later. Rows that are still needed are
moved to the front only when the buffer is full.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from streams.contract.task import Reading, Task

SEGMENTS_BUFFERED = 8


def segments_of(
    readings: Iterable[Reading], task: Task, *, skip: Callable[[str, int], None] | None = None
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray | None]]:
    """Cut readings into segments.

    Yields first time, last time, segment (channels, samples) float32, and label (label_size,) or
    None. A segment never spans a gap of more than `Task.max_gap_us`, a step back in time, or a
    reading with a wrong number of values or a non-finite value; each calls `skip(reason, time_us)`.
    """
    channels, samples = task.segment_shape
    hop, max_gap_us = task.segment.hop, task.max_gap_us
    buffer = np.empty((SEGMENTS_BUFFERED * samples, channels), dtype=np.float32)
    begin = 0  # of the segment being filled
    times: list[int] = []
    labels: list[float | Sequence[float] | None] = []
    for reading in readings:
        broken = _fault(reading, times, max_gap_us, channels)
        if broken:
            if skip is not None:
                skip(broken, reading.time_us)
            times.clear()
            labels.clear()
            if broken not in ("gap", "backwards"):
                continue
        buffer[begin + len(times)] = reading.values
        times.append(reading.time_us)
        labels.append(reading.label)
        if len(times) == samples:
            segment = buffer[begin : begin + samples].T.copy()
            yield times[0], times[-1], segment, _segment_label(labels, task)
            begin += hop
            del times[:hop], labels[:hop]
            if begin + samples > len(buffer):
                buffer[: len(times)] = buffer[begin : begin + len(times)].copy()
                begin = 0


def _fault(reading: Reading, times: list[int], max_gap_us: float, channels: int) -> str | None:
    if len(reading.values) != channels:
        return "width"
    if not all(map(math.isfinite, reading.values)):
        return "not-finite"
    if times and reading.time_us <= times[-1]:
        return "backwards"
    if times and reading.time_us - times[-1] > max_gap_us:
        return "gap"
    return None


def label_fits(task: Task, label: object) -> bool:
    """Return whether a label is a class index, or a finite value for every target."""
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
    if task.targets:
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
    if isinstance(label, Sequence):
        return label[0] if len(label) == 1 else None
    return label
