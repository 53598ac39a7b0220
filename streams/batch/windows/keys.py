"""The device and the window of each row: windows are those of the worker, `Task.window_s` long."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from streams.batch.records.documents import Columns
from streams.batch.records.rows import RowProblem, Rows
from streams.batch.sources.selection import times_of
from streams.contract.task import Task

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
    times = times_of(_array(rows.kept[time]), problems)
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


def _array(values: Any) -> pa.Array:
    """Return a carried column as an array: whole numbers and ISO texts stay what they are."""
    if not isinstance(values, list):
        return values
    return pa.array([None if v is None else str(v) for v in values], pa.string())


def _texts(values: Any) -> list[str | None]:
    if not isinstance(values, list):
        return list(values.cast(pa.string()).to_pylist())
    return [str(v) if type(v) in (str, int) else None for v in values]
