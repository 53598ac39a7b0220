"""Rows that are readings, cut into segments by the device's own code (streams.segments).

Shards are scored apart from each other, but segments span them. While the input is cut, its
readings are cut into segments too, without a model: that tells how many segments end in each shard,
and which readings are pending at its start, which are kept as Arrow in the job's folder:

    carry/<shard>.arrow     device, time (microseconds), values, label; absent where none is
                            pending. values null: only the time of the device's last reading, for
                            channels that follow from it
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from streams.batch.progress import Plan, PlannedFile, Shard
from streams.batch.rows import BAD_LABEL, RowProblem, Rows, batch_rows
from streams.batch.sources.inputs import as_read, one_sample, read_shard
from streams.batch.sources.selection import times_of
from streams.batch.specification import Columns, InputFormat
from streams.contract.task import Reading, Task
from streams.contract.task.channels import given
from streams.runtime.files import replacing
from streams.segments.segmentation import LABEL_UNFIT, Segmenter

TIMESTAMP = pa.timestamp("us", "UTC")
FIELDS = [("device", pa.string()), ("begin", TIMESTAMP), ("time", TIMESTAMP)]


Cut = tuple[str, int, int, np.ndarray, np.ndarray | None]  # device, begin, time, segment, label


class Cutting:
    """The segmenters of all devices, which go on from one shard to the next."""

    def __init__(self, task: Task, columns: Columns) -> None:
        self._task, self._columns, self._flat = task, columns, one_sample(task)
        self._broken: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._current: tuple[str, int, RowProblem | None] = ("", 0, None)  # file, row
        self.segmenters: dict[str, Segmenter] = {}

    def of(self, device: str) -> Segmenter:
        segmenter = self.segmenters.get(device)
        if segmenter is None:
            segmenter = self.segmenters[device] = Segmenter(self._task, self._break)
        return segmenter

    def _break(self, reason: str, _time_us: int) -> None:
        if reason != LABEL_UNFIT:
            self._count(reason)

    def _count(self, reason: str) -> None:
        self._broken[reason] += 1
        if reason not in self._examples:
            file, row, problem = self._current
            self._examples[reason] = f"{file}:{row}" + (f": {problem.reason}" if problem else "")

    def rows(self, kind: InputFormat, file: PlannedFile, shard: Shard) -> Iterator[Rows]:
        """Yield the segments that end in a shard; some rows have none."""
        columns = as_read(self._columns)
        for part in read_shard(self._flat, kind, file, shard, columns):
            self._broken, self._examples = Counter(), {}
            rows = self._rows(part, self._cut(part, file.name))
            rows.readings, rows.broken = len(part), dict(self._broken)
            rows.bad_labels = rows.broken.pop(BAD_LABEL, 0)
            rows.examples = self._examples
            yield from _in_batches(rows, batch_rows(self._task))

    def _cut(self, part: Rows, file: str) -> list[tuple[int, Cut]]:
        """Return the segments that end, each with the index of its last reading."""
        problems, ended = dict(part.problems), []
        numbers, stem = part.numbers.tolist(), PurePosixPath(file).stem
        times = times_of(part.kept[str(self._columns.time)], problems)
        values = part.segments[:, :, 0].tolist()
        labels = [None] * len(part) if part.labels is None else part.labels.tolist()
        for i in range(len(part)):
            device, problem = stem if part.ids is None else part.ids[i], problems.get(i)
            self._current = file, numbers[i], problem
            code = problem.code if problem else None
            if device is None or code == "bad-time":
                self._count(code or "missing")
                continue
            row, label = values[i], labels[i]
            if code == BAD_LABEL:
                self._count(code)  # the reading itself is whole
                self._current = file, numbers[i], None
            elif code is not None:
                row = [float("nan")] * len(row)  # breaks the segment, as on a device
            if code is not None or (label is not None and np.isnan(label[0])):
                label = None
            segmenter, reading = self.of(device), Reading(int(times[i]), row, label)
            whole = reading._replace(values=segmenter.completed(reading, row))
            cut = segmenter.push_numbers(whole)
            if cut is not None:
                ended.append((i, (device, *cut)))
        return ended

    def _rows(self, part: Rows, ended: list[tuple[int, Cut]]) -> Rows:
        """Return the segments that are selected by their last reading, whose event time is theirs,
        as on a device."""
        low, high = self._columns.from_us, self._columns.to_us
        out = {i for i, problem in part.left.items() if problem is None}
        chosen = [(i, cut) for i, cut in ended if low <= cut[2] < high and i not in out]
        cuts, last = [cut for _, cut in chosen], [i for i, _ in chosen]
        shape = (len(cuts), *self._task.segment_shape)
        rows = Rows(part.numbers[last], np.array([c[3] for c in cuts], np.float32).reshape(shape))
        rows.excluded = len(ended) - len(cuts)
        rows.problems = {n: found for n, i in enumerate(last) if (found := part.left.get(i))}
        rows.segments[list(rows.problems)] = 0.0
        rows.ids = [f"{device}:{time}" for device, _, time, *_ in cuts]
        if self._columns.label is not None:
            none = np.full(self._task.label_size, np.nan)
            labels = np.array([none if cut[4] is None else cut[4] for cut in cuts], np.float32)
            rows.labels = labels.reshape(len(cuts), self._task.label_size)
        rows.kept = {
            name: pa.array([cut[n] for cut in cuts]).cast(kind)
            for n, (name, kind) in enumerate(FIELDS)
        }
        indices = pa.array(last, pa.int64())
        rows.kept |= {name: part.kept[name].take(indices) for name in self._columns.keep}
        return rows


def _in_batches(rows: Rows, most: int) -> Iterator[Rows]:
    """Yield rows in parts, the first of which has what was counted."""
    for at in range(0, len(rows) or 1, most):
        part = slice(at, at + most)
        found = replace(
            rows,
            numbers=rows.numbers[part],
            segments=rows.segments[part],
            labels=None if rows.labels is None else rows.labels[part],
            problems={i - at: p for i, p in rows.problems.items() if at <= i < at + most},
            ids=rows.ids and rows.ids[part],
            kept={name: values[part] for name, values in rows.kept.items()},
        )
        if at:
            found = replace(found, excluded=0, readings=0, broken={}, bad_labels=0, examples={})
        yield found


NUMBERS = pa.list_(pa.float32())
SCHEMA = pa.schema({"device": pa.string(), "time": pa.int64(), "values": NUMBERS, "label": NUMBERS})


def carry_path(folder: Path, shard: int) -> Path:
    return folder / "carry" / f"{shard:05}.arrow"


def plan_readings(
    plan: Plan,
    task: Task,
    kind: InputFormat,
    columns: Columns,
    folder: Path,
    look: Callable[[int, int], None],
) -> Plan:
    """Return a plan of readings as one of segments, and write what its shards carry."""
    cutting, timed = Cutting(task, columns), len(given(task.channels)) < len(task.channels)
    shards, ended = [], [0] * len(plan.files)
    for number, shard in enumerate(plan.shards):
        look(number, len(plan.shards))
        _write(carry_path(folder, number), cutting.segmenters, timed=timed)
        file = plan.files[shard.file]
        rows = sum(len(part) + part.excluded for part in cutting.rows(kind, file, shard))
        ended[shard.file] += rows
        shards.append(shard.replace(rows=rows, readings=shard.rows))
    files = [file.replace(rows=rows) for file, rows in zip(plan.files, ended, strict=True)]
    return Plan(files=files, shards=shards)


def read_readings(
    task: Task,
    kind: InputFormat,
    file: PlannedFile,
    shard: Shard,
    columns: Columns,
    carry: Path,
) -> Iterator[Rows]:
    """Yield the segments that end in a shard; `carry` has what is pending at its start."""
    cutting = Cutting(task, columns)
    if carry.exists():
        with pa.OSFile(str(carry)) as source:
            for row in pa.ipc.open_file(source).read_all().to_pylist():
                segmenter = cutting.of(row["device"])
                if row["values"] is None:
                    segmenter.begin_after(row["time"])
                else:
                    segmenter.push_numbers(Reading(row["time"], row["values"], row["label"]))
    return cutting.rows(kind, file, shard)


def _write(path: Path, segmenters: Mapping[str, Segmenter], *, timed: bool) -> None:
    rows = [
        {"device": device, "time": one.time_us, "values": one.values, "label": one.label}
        for device, segmenter in segmenters.items()
        for one in segmenter.pending or [Reading(segmenter.last_us, None)]  # type: ignore[arg-type]
        if one.values is not None or timed
    ]
    if not rows:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
