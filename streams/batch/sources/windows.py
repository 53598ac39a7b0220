"""A teacher's windows: it scores the rows of one device's window together, by the code of the
worker (streams.learning.teacher). Windows are those of the worker, `Task.window_s` long.

A window's rows may lie in several shards, and a teacher needs all of them. Of each window the
planning keeps a hash of 8 bytes for each shard that has rows of it: of two windows with one hash
the shards that are read are too many, never too few. Each window is a forward pass of its own, its
rows in the order of their event times: the outputs of a row do not depend on where shards end.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from streams.batch.records.rows import RowProblem, Rows, Taught
from streams.batch.records.specification import Columns, Plan, Specification
from streams.batch.sources.inputs import read_shard
from streams.batch.sources.readings import carry_path, read_readings
from streams.batch.sources.selection import times_of
from streams.batch.sources.text import MAX_LINE_BYTES
from streams.contract.task import Task

if TYPE_CHECKING:
    from streams.learning.teacher import Teacher

Named = tuple[str | None, str]  # the columns of the device and of the event time
MADE: Named = ("device", "time")  # of rows that are cut from readings


class Key(NamedTuple):
    device: str
    window: int  # its start, microseconds
    time: int


def with_keys(columns: Columns) -> Columns:
    """Return the columns as they are read: those of device and time are carried along."""
    named = [columns.device, columns.selection.time]
    more = [name for name in named if name is not None]
    return columns.model_copy(update={"keep": list(dict.fromkeys([*columns.keep, *more]))})


def keys_of(
    task: Task, rows: Rows, named: Named, stem: str
) -> tuple[list[Key | None], dict[int, RowProblem]]:
    """Return the key of each row, None where it has none, and why; without a column of the device
    all rows are those of `stem`. Rows that have a problem have no key."""
    problems: dict[int, RowProblem] = {}
    device, time = named
    times = times_of(rows.kept[time], problems)
    devices: Sequence[Any] = [stem] * len(rows)
    if device is not None:
        devices = _texts(rows.kept[device])
    for i in np.flatnonzero([name is None for name in devices]).tolist():
        problems.setdefault(i, RowProblem("missing", "the row has no device"))
    starts = (times - times % task.window_us).tolist()
    found: list[Key | None] = []
    for i, (name, start, moment) in enumerate(zip(devices, starts, times.tolist(), strict=True)):
        whole = i not in problems and i not in rows.problems
        found.append(Key(name, start, moment) if whole else None)
    return found, problems


def _texts(values: Any) -> list[str | None]:
    if not isinstance(values, list):
        return list(values.cast(pa.string()).to_pylist())
    return [str(v) if type(v) in (str, int) else None for v in values]


def plan_windows(plan: Plan, keys_in: Callable[[int], Iterable[Key]]) -> Plan:
    """Return a plan whose shards name those around them; `keys_in` yields the keys of a shard."""
    hashes, owners = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number in range(len(plan.shards)):
        found = {hash((key.device, key.window)) for key in keys_in(number)}
        hashes.append(np.fromiter(found, np.int64, len(found)))
        owners.append(np.full(len(found), number))
    first, last = _extents(np.concatenate(hashes), np.concatenate(owners), len(plan.shards))
    shards = [
        shard.model_copy(update={"around": (int(low), int(high))})
        for shard, low, high in zip(plan.shards, first, last, strict=True)
    ]
    return plan.model_copy(update={"shards": shards})


def _extents(hashes: np.ndarray, owners: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each shard the first and the last one that share a window with it."""
    first, last = np.arange(count), np.arange(count)
    _, window = np.unique(hashes, return_inverse=True)
    windows = int(window.max(initial=-1)) + 1
    low, high = np.full(windows, count), np.full(windows, -1)
    np.minimum.at(low, window, owners)
    np.maximum.at(high, window, owners)
    np.minimum.at(first, owners, low[window])
    np.maximum.at(last, owners, high[window])
    return first, last


AT_ONCE = 256  # windows

Keyed = tuple[Rows, list[Key | None], dict[int, RowProblem]]
Window = list[tuple[tuple[int, int, int], tuple[int, int] | None, np.ndarray]]


def taught(
    task: Task,
    teacher: "Teacher",
    own: Sequence[Keyed],
    number: int,
    others: Iterable[tuple[int, Keyed]],
    between: Callable[[], None],
) -> Iterator[tuple[Rows, Taught]]:
    """Yield the parts of shard `number` with the teacher's outputs; `others` are parts of shards
    around it, each with its number."""
    found = [_untaught(task, part) for part in own]
    windows: dict[tuple[str, int], Window] = {}
    for at, (key, segment, place) in enumerate(_rows(own)):
        rows = windows.setdefault(key[:2], [])
        rows.append(((key.time, number, at), place, segment))
    for at, (other, part) in enumerate(others):
        between()
        for i, (key, segment, _) in enumerate(_rows([part])):
            if key[:2] in windows:  # a copy: the part is not kept
                order = key.time, other, at * 2**32 + i
                windows[key[:2]].append((order, None, segment.copy()))
    waiting = list(windows.values())
    for begin in range(0, len(waiting), AT_ONCE):
        between()
        _score(teacher, waiting[begin : begin + AT_ONCE], found)
    yield from zip([rows for rows, _, _ in own], found, strict=True)


def _rows(parts: Sequence[Keyed]) -> Iterator[tuple[Key, np.ndarray, tuple[int, int]]]:
    for index, (rows, keys, _) in enumerate(parts):
        for i, key in enumerate(keys):
            if key is not None:
                yield key, rows.segments[i], (index, i)


def _untaught(task: Task, part: Keyed) -> Taught:
    rows, _, problems = part
    outputs = np.zeros((len(rows), task.outputs), np.float32)
    return Taught(outputs, np.zeros(len(rows), bool), dict(problems))


def _score(teacher: "Teacher", windows: Sequence[Window], found: list[Taught]) -> None:
    """Score windows, and put the outputs where their rows are."""
    for window in windows:
        window.sort(key=lambda row: row[0])
    scored = teacher.score([np.stack([row[2] for row in window]) for window in windows])
    for window, outputs in zip(windows, scored, strict=True):
        for i, (_, place, _) in enumerate(window):
            if place is None:
                continue
            part, row = place
            if isinstance(outputs, np.ndarray):
                found[part].outputs[row] = outputs[i]
                found[part].there[row] = True
            else:
                found[part].problems[row] = RowProblem("teacher-failed", str(outputs))


@dataclass(frozen=True)
class ShardRows:
    """Reads the shards of one job; `folder` is the job's."""

    folder: Path
    specification: Specification
    task: Task
    max_bytes: int = MAX_LINE_BYTES

    def rows(self, plan: Plan, number: int) -> Iterator[Rows]:
        """Yield the rows of a shard in batches."""
        return self._read(plan, number, self.specification.columns)

    def keys(self, plan: Plan, number: int) -> Iterator[Key]:
        """Yield the keys of a shard's rows that have one."""
        for _, keys, _ in self._keyed(plan, number):
            yield from (key for key in keys if key is not None)

    def taught(
        self, plan: Plan, number: int, teacher: "Teacher", between: Callable[[], None]
    ) -> Iterator[tuple[Rows, Taught]]:
        """Yield the rows of a shard with the outputs of a teacher."""
        low, high = plan.shards[number].around or (number, number)
        others = (
            (other, part)
            for other in range(low, high + 1)
            if other != number
            for part in self._keyed(plan, other)
        )
        own = list(self._keyed(plan, number))
        kept = self.specification.columns.keep
        for rows, found in taught(self.task, teacher, own, number, others, between):
            if self._files:
                rows = replace(rows, kept={name: rows.kept[name] for name in kept})
            yield rows, found

    @property
    def _files(self) -> bool:
        """Whether the device and the time of a row are columns of the input."""
        return self.specification.settings.rows == "segments"

    def _keyed(self, plan: Plan, number: int) -> Iterator[Keyed]:
        columns, named = self.specification.columns, MADE
        if self._files:
            assert columns.selection.time is not None
            named = columns.device, columns.selection.time
            columns = with_keys(columns)
        stem = PurePosixPath(plan.files[plan.shards[number].file].name).stem
        for rows in self._read(plan, number, columns):
            yield (rows, *keys_of(self.task, rows, named, stem))

    def _read(self, plan: Plan, number: int, columns: Columns) -> Iterator[Rows]:
        shard, kind = plan.shards[number], self.specification.input_format
        file = plan.files[shard.file]
        if self.specification.settings.rows == "segments":
            return read_shard(self.task, kind, file, shard, columns, self.max_bytes)
        carry = carry_path(self.folder, number)
        return read_readings(self.task, kind, file, shard, columns, carry, self.max_bytes)
