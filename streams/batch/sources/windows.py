"""A teacher's windows: it scores the rows of one device's window together, by the code of the
worker (streams.learning.teacher). Windows are those of the worker, by `Task.window`.

A window's rows may lie in several shards, and a teacher needs all of them. Of each window the
planning keeps a hash of 8 bytes for each shard that has rows of it, so that a shard knows the first
and the last one around it that share a window: of two windows with one hash the shards that are
read are too many, never too few. Each window is a forward pass of its own, its rows in the order of
their event times: the outputs of a row do not depend on where shards end.

Windows that depend on the events before them (sessions, counts, a task's own) are cut before the
plan, from the times of all rows: 8 bytes of memory a row, and one more pass over the input.

    windows.parquet   in the job's folder: `device` and `start`, microseconds, of every window
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streams.batch.progress import Plan
from streams.batch.rows import RowProblem, Rows
from streams.batch.sources.inputs import read_shard, with_keys
from streams.batch.sources.readings import carry_path, plan_readings, read_readings
from streams.batch.sources.selection import times_of
from streams.batch.specification import Columns, Specification
from streams.contract.task import Task

FILE = "windows.parquet"


class CutStarts:
    """Which window a row of a job is in; `folder` is the job's. Before they are cut no row has one,
    and `starts` returns 0."""

    def __init__(self, folder: Path, task: Task) -> None:
        self._path, self._task = folder / FILE, task

    def write(self, rows: Iterable[tuple[str, int]]) -> None:
        """Cut the windows of all rows, given by device and time."""
        times: dict[str, array[int]] = {}
        for device, time in rows:
            times.setdefault(device, array("q")).append(time)
        names, starts = list[np.ndarray](), list[np.ndarray]()
        for number, device in enumerate(times):
            own = np.sort(np.frombuffer(times[device], np.int64))
            starts.append(np.unique(self._task.window.starts(own)))
            names.append(np.full(len(starts[-1]), number, np.int32))
        none = np.zeros(0, np.int64)
        devices = pa.DictionaryArray.from_arrays(
            np.concatenate([none.astype(np.int32), *names]), pa.array(list(times), pa.string())
        )
        found = pa.array(np.concatenate([none, *starts]))
        pq.write_table(pa.table({"device": devices, "start": found}), self._path)
        self.__dict__.pop("_found", None)

    @cached_property
    def _found(self) -> dict[str, np.ndarray] | None:
        """The starts of each device's windows, in order."""
        if not self._path.exists():
            return None
        table = pq.read_table(self._path)
        devices = table.column("device").combine_chunks().dictionary_encode()
        names, starts = devices.dictionary.to_pylist(), table.column("start").to_numpy()
        edges = np.searchsorted(devices.indices.to_numpy(), np.arange(len(names) + 1))
        return {name: starts[edges[i] : edges[i + 1]] for i, name in enumerate(names)}

    def starts(self, devices: Sequence[str | None], times: np.ndarray) -> list[int]:
        """Return the start of each row's window; any for a row without a device."""
        if self._task.aligned:
            return [int(start) for start in self._task.window.starts(times)]
        if self._found is None:
            return [0] * len(times)
        return [
            int(own[np.searchsorted(own, time, side="right") - 1]) if own is not None else 0
            for own, time in zip(
                (self._found.get(name or "") for name in devices), times.tolist(), strict=True
            )
        ]


AT_ONCE = 256  # windows

Teacher = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray | Exception]]


class Key(NamedTuple):
    device: str
    window: int  # its start, microseconds
    time: int


Keyed = tuple[Rows, list[Key | None]]
Place = tuple[int, int]  # a part of the shard, and a row of it
Window = list[tuple[tuple[int, int, int], Place | None, np.ndarray]]


def plan_windows(plan: Plan, keys_in: Callable[[int], Iterable[Key]]) -> Plan:
    """Return a plan whose shards name those around them; `keys_in` yields the keys of a shard."""
    hashes, owners = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number in range(len(plan.shards)):
        found = {hash((key.device, key.window)) for key in keys_in(number)}
        hashes.append(np.fromiter(found, np.int64, len(found)))
        owners.append(np.full(len(found), number))
    first, last = _extents(np.concatenate(hashes), np.concatenate(owners), len(plan.shards))
    shards = [
        shard.replace(around=(int(low), int(high)))
        for shard, low, high in zip(plan.shards, first, last, strict=True)
    ]
    return plan.replace(shards=shards)


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


@dataclass(frozen=True)
class ShardRows:
    """Reads the shards of one job; `folder` is the job's."""

    folder: Path
    specification: Specification
    task: Task

    @cached_property
    def cuts(self) -> CutStarts:
        return CutStarts(self.folder, self.task)

    def plan(self, plan: Plan, look: Callable[[int, int], None]) -> Plan:
        """Return the plan of a cut input as one of what is scored: of segments where its rows are
        readings; and where a teacher answers, the shards name those around them. `look` is called
        before each shard is read, with how many were, and how many there are."""
        found = self.specification
        if not self._files:
            about = found.input_format, found.columns, self.folder
            plan = plan_readings(plan, self.task, *about, look)
        if found.kind != "teacher":
            return plan

        def keys_of(number: int) -> Iterator[Key]:
            look(number, len(plan.shards))
            return self.keys(plan, number)

        if not self.task.aligned:
            keys = (key for number in range(len(plan.shards)) for key in keys_of(number))
            self.cuts.write((key.device, key.time) for key in keys)
        return plan_windows(plan, keys_of)

    def rows(self, plan: Plan, number: int) -> Iterator[Rows]:
        """Yield the rows of a shard in batches."""
        return self._read(plan, number, self.specification.columns)

    def keys(self, plan: Plan, number: int) -> Iterator[Key]:
        """Yield the keys of a shard's rows that have one."""
        for _, keys in self._keyed(plan, number):
            yield from (key for key in keys if key is not None)

    def taught(self, plan: Plan, number: int, teacher: Teacher) -> Iterator[Rows]:
        """Yield the rows of a shard with the outputs of a teacher."""
        low, high = plan.shards[number].around or (number, number)
        own = list(self._keyed(plan, number))
        windows: dict[tuple[str, int], Window] = {}
        for at, (key, segment, place) in enumerate(_rows(own)):
            windows.setdefault(key[:2], []).append(((key.time, number, at), place, segment))
        for other in range(low, high + 1):
            parts = self._keyed(plan, other) if other != number else ()
            for at, part in enumerate(parts):
                for i, (key, segment, _) in enumerate(_rows([part])):
                    if key[:2] in windows:  # a copy: the part is not kept
                        order = key.time, other, at * 2**32 + i
                        windows[key[:2]].append((order, None, segment.copy()))
        for rows, _ in own:
            rows.outputs = np.zeros((len(rows), self.task.outputs), np.float32)
        waiting = list(windows.values())
        for begin in range(0, len(waiting), AT_ONCE):
            _score(teacher, waiting[begin : begin + AT_ONCE], [rows for rows, _ in own])
        keep = self.specification.columns.keep
        for rows, _ in own:
            kept = {name: rows.kept[name] for name in keep} if self._files else rows.kept
            yield replace(rows, kept=kept)

    @property
    def _files(self) -> bool:
        """Whether the device and the time of a row are columns of the input."""
        return self.specification.settings.rows == "segments"

    def _keyed(self, plan: Plan, number: int) -> Iterator[Keyed]:
        columns = self.specification.columns
        device, time = "device", "time"  # of rows that are cut from readings
        if self._files:
            device, time = columns.device or "", str(columns.time)
            columns = with_keys(columns)
        stem = PurePosixPath(plan.files[plan.shards[number].file].name).stem
        for rows in self._read(plan, number, columns):
            yield rows, self._keys(rows, device, time, stem)

    def _keys(self, rows: Rows, device: str, time: str, stem: str) -> list[Key | None]:
        """Return the key of each row, None for those that have a problem; without a column of the
        device all rows are those of `stem`."""
        times = times_of(rows.kept[time], rows.problems)
        names: Sequence[str | None] = [stem] * len(rows)
        if device:
            names = rows.kept[device].cast(pa.string()).to_pylist()
        for i in np.flatnonzero([name is None for name in names]).tolist():
            rows.problems.setdefault(i, RowProblem("missing", "the row has no device"))
        starts = self.cuts.starts(names, times)
        return [
            None if name is None or i in rows.problems else Key(name, start, moment)
            for i, (name, start, moment) in enumerate(
                zip(names, starts, times.tolist(), strict=True)
            )
        ]

    def _read(self, plan: Plan, number: int, columns: Columns) -> Iterator[Rows]:
        shard = plan.shards[number]
        about = self.specification.input_format, plan.files[shard.file], shard, columns
        if self._files:
            return read_shard(self.task, *about)
        return read_readings(self.task, *about, carry_path(self.folder, number))


def _rows(parts: Sequence[Keyed]) -> Iterator[tuple[Key, np.ndarray, Place]]:
    for index, (rows, keys) in enumerate(parts):
        for i, key in enumerate(keys):
            if key is not None:
                yield key, rows.segments[i], (index, i)


def _score(teacher: Teacher, windows: Sequence[Window], parts: Sequence[Rows]) -> None:
    """Score windows, and put the outputs where their rows are."""
    for window in windows:
        window.sort(key=lambda row: row[0])
    scored = teacher([np.stack([row[2] for row in window]) for window in windows])
    for window, outputs in zip(windows, scored, strict=True):
        for i, (_, place, _) in enumerate(window):
            if place is None:
                continue
            rows, row = parts[place[0]], place[1]
            if isinstance(outputs, np.ndarray):
                assert rows.outputs is not None
                rows.outputs[row] = outputs[i]
            else:
                rows.problems[row] = RowProblem("teacher-failed", str(outputs))
