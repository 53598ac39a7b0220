"""Readings of one shard, cut into segments by the device's own code (streams.segments)."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from streams.batch.recordings.columns import as_read, one_sample
from streams.batch.records.documents import Columns, InputFormat, PlannedFile, Shard
from streams.batch.records.rows import Rows, batch_rows
from streams.batch.sources.reading import read_shard
from streams.batch.sources.selection import times_of
from streams.contract.task import Reading, Task
from streams.segments.segmentation import IRREGULAR, Segmenter

TIMESTAMP = pa.timestamp("us", "UTC")
FIELDS = [("device", pa.string()), ("begin", TIMESTAMP), ("time", TIMESTAMP)]


@dataclass
class _Ended:
    """Segments that have ended, and of each the index of its last reading."""

    cuts: list[tuple[str, int, int, np.ndarray, np.ndarray | None]] = field(default_factory=list)
    last: list[int] = field(default_factory=list)


class Cutting:
    """The segmenters of all devices, which go on from one shard to the next."""

    def __init__(self, task: Task, columns: Columns) -> None:
        self._task, self._columns, self._flat = task, columns, one_sample(task)
        self._broken: Counter[str] = Counter()
        self.segmenters: dict[str, Segmenter] = {}

    def take(self, device: str, reading: Reading) -> tuple[Any, ...] | None:
        """Give a reading to its device; return the segment that it ends."""
        segmenter = self.segmenters.get(device)
        if segmenter is None:
            segmenter = Segmenter(self._task, self._break)
            self.segmenters[device] = segmenter
        return segmenter.push(reading)

    def _break(self, reason: str, _time_us: int) -> None:
        if reason not in IRREGULAR:
            self._broken[reason] += 1

    def rows(
        self, kind: InputFormat, file: PlannedFile, shard: Shard, max_bytes: int
    ) -> Iterator[Rows]:
        """Yield the segments that end in a shard; some rows have none."""
        columns = as_read(self._columns)
        stem = PurePosixPath(file.name).stem
        for part in read_shard(self._flat, kind, file, shard, columns, max_bytes):
            self._broken = Counter()
            if part.excluded:
                self._broken["where"] = part.excluded
            ended = self._cut(part, stem)
            rows = self._rows(part, ended)
            rows.readings, rows.broken = len(part) + part.excluded, dict(self._broken)
            yield from _in_batches(rows, batch_rows(self._task))

    def _cut(self, part: Rows, stem: str) -> _Ended:
        problems = dict(part.problems)
        time = part.kept[str(self._columns.selection.time)]
        times = times_of(time if isinstance(time, pa.Array) else _microseconds(time), problems)
        values = part.segments[:, :, 0].tolist()
        labels = None if part.labels is None else part.labels.tolist()
        ended = _Ended()
        for i in range(len(part)):
            device = stem if part.ids is None else part.ids[i]
            problem = problems.get(i)
            if device is None or (problem is not None and problem.code == "bad-time"):
                self._broken[problem.code if problem else "missing"] += 1
                continue
            row, label = values[i], None
            if problem is not None and problem.code == "bad-label":
                self._broken["bad-label"] += 1  # the reading itself is whole
            elif problem is not None:
                row = [float("nan")] * len(row)  # breaks the segment, as on a device
            elif labels is not None and not np.isnan(labels[i][0]):
                label = labels[i]
            cut = self.take(device, Reading(int(times[i]), row, label))
            if cut is not None:
                ended.cuts.append((device, *cut))
                ended.last.append(i)
        return ended

    def _rows(self, part: Rows, ended: _Ended) -> Rows:
        """Return the segments in the range of event time; that of a segment is its last reading's,
        as on a device."""
        selection = self._columns.selection
        low = -(2**62) if selection.from_us is None else selection.from_us
        high = 2**62 if selection.to_us is None else selection.to_us
        chosen = [i for i, cut in enumerate(ended.cuts) if low <= cut[2] < high]
        cuts, last = [ended.cuts[i] for i in chosen], [ended.last[i] for i in chosen]
        shape = (len(cuts), *self._task.segment_shape)
        rows = Rows(part.numbers[last], np.array([c[3] for c in cuts], np.float32).reshape(shape))
        rows.excluded = len(ended.cuts) - len(cuts)
        rows.ids = [f"{device}:{time}" for device, _, time, *_ in cuts]
        if self._columns.label is not None:
            rows.labels = np.full((len(cuts), self._task.label_size), np.nan, np.float32)
            for i, cut in enumerate(cuts):
                if cut[4] is not None:
                    rows.labels[i] = cut[4]
        rows.kept = {
            "device": pa.array([cut[0] for cut in cuts], pa.string()),
            "begin": pa.array([cut[1] for cut in cuts], pa.int64()).cast(TIMESTAMP),
            "time": pa.array([cut[2] for cut in cuts], pa.int64()).cast(TIMESTAMP),
            **{name: _taken(part.kept[name], last) for name in self._columns.keep},
        }
        return rows


def _taken(values: Any, indices: list[int]) -> Any:
    if isinstance(values, list):
        return [values[i] for i in indices]
    return values.take(pa.array(indices, pa.int64()))


def _microseconds(values: list[Any]) -> pa.Array:
    """Return JSON values as an array: whole numbers and ISO texts stay what they are."""
    return pa.array([None if v is None else str(v) for v in values], pa.string())


def _in_batches(rows: Rows, most: int) -> Iterator[Rows]:
    if len(rows) <= most:
        yield rows
        return
    for at in range(0, len(rows), most):
        part = slice(at, at + most)
        yield Rows(
            rows.numbers[part],
            rows.segments[part],
            labels=None if rows.labels is None else rows.labels[part],
            ids=None if rows.ids is None else rows.ids[part],
            kept={name: values[part] for name, values in rows.kept.items()},
            excluded=0 if at else rows.excluded,
            readings=0 if at else rows.readings,
            broken={} if at else rows.broken,
        )
