"""Rows that are readings, cut into segments by the device's own code (streams.segments).

Shards are scored apart from each other, but segments span them. While the input is cut, its
readings are cut into segments too, without a model: that tells how many segments end in each shard,
and which readings are pending at its start, which are kept as Arrow in the job's folder:

    carry/<shard>.arrow     device, time (microseconds), values, label; absent where none is pending
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from streams.batch.records.rows import Rows, batch_rows
from streams.batch.records.specification import (
    Columns,
    InputFormat,
    Named,
    Plan,
    PlannedFile,
    Selection,
    Settings,
    Shard,
)
from streams.batch.sources.inputs import choose_columns, names_of, read_shard
from streams.batch.sources.selection import times_of
from streams.contract.errors import UsageError
from streams.contract.task import Reading, Segment, Task
from streams.runtime.disk import replacing
from streams.segments.segmentation import IRREGULAR, Segmenter

TIME, DEVICE = "time", "device"
OURS = ("device", "begin", "time")  # of the output


def one_sample(task: Task) -> Task:
    """Return the task of which a segment is one reading."""
    return replace(task, segment=Segment(samples=1, hop=1))


def reading_columns(
    task: Task, kind: InputFormat, files: Sequence[Named], wanted: Settings
) -> Columns:
    """Return the columns of readings; `id` is that of the device, None where each file is one
    device's, with its name."""
    clash = sorted(set(wanted.keep) & set(OURS))
    if clash:
        raise UsageError(f"--keep {clash[0]}: rows of readings have that column anyway")
    time = wanted.time or TIME
    device = wanted.id
    if device is None and DEVICE in names_of(kind, files[0]):
        device = DEVICE
    columns = list(wanted.columns)
    if not columns and not wanted.drop:
        columns = list(task.channels)
    asked = wanted.model_copy(update={"columns": columns, "id": device, "time": time})
    return choose_columns(one_sample(task), kind, files, asked)


def as_read(columns: Columns) -> Columns:
    """Return the columns as they are read: the time too, and every reading of the device whatever
    its event time, because a segment needs those before it."""
    selection = columns.selection
    where = Selection(where=selection.where, columns=selection.columns, time=selection.time)
    keep = list(dict.fromkeys([*columns.keep, str(selection.time)]))
    return columns.model_copy(update={"keep": keep, "selection": where})


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
        times = times_of(part.kept[str(self._columns.selection.time)], problems)
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


SCHEMA = pa.schema(
    [
        ("device", pa.string()),
        ("time", pa.int64()),
        ("values", pa.list_(pa.float32())),
        ("label", pa.list_(pa.float32())),
    ]
)


def carry_path(folder: Path, shard: int) -> Path:
    return folder / "carry" / f"{shard:05}.arrow"


def plan_readings(
    plan: Plan,
    task: Task,
    kind: InputFormat,
    columns: Columns,
    folder: Path,
    check: Callable[[], None],
    max_bytes: int,
) -> Plan:
    """Return a plan of readings as one of segments, and write what its shards carry."""
    cutting = Cutting(task, columns)
    shards, ended = [], [0] * len(plan.files)
    for number, shard in enumerate(plan.shards):
        check()
        _write(carry_path(folder, number), cutting.segmenters)
        file = plan.files[shard.file]
        rows = sum(len(part) + part.excluded for part in cutting.rows(kind, file, shard, max_bytes))
        ended[shard.file] += rows
        shards.append(shard.model_copy(update={"rows": rows, "readings": shard.rows}))
    files = [
        file.model_copy(update={"rows": rows}) for file, rows in zip(plan.files, ended, strict=True)
    ]
    return Plan(files=files, shards=shards)


def read_readings(
    task: Task,
    kind: InputFormat,
    file: PlannedFile,
    shard: Shard,
    columns: Columns,
    path: Path,
    max_bytes: int,
) -> Iterator[Rows]:
    """Yield the segments that end in a shard; `path` has what it carries."""
    cutting = Cutting(task, columns)
    for device, reading in carried(path):
        cutting.take(device, reading)
    return cutting.rows(kind, file, shard, max_bytes)


def carried(path: Path) -> Iterator[tuple[str, Reading]]:
    """Yield device and reading of what is pending at a shard's start."""
    if not path.exists():
        return
    with pa.OSFile(str(path)) as source:
        for row in pa.ipc.open_file(source).read_all().to_pylist():
            yield row["device"], Reading(row["time"], row["values"], row["label"])


def _write(path: Path, segmenters: Mapping[str, Segmenter]) -> None:
    rows = [
        {"device": device, "time": one.time_us, "values": one.values, "label": one.label}
        for device, segmenter in segmenters.items()
        for one in segmenter.pending
    ]
    if not rows:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
