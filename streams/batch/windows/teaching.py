"""A teacher's outputs of a shard's rows, by the code of the worker (streams.learning.teacher).

Each window is a forward pass of its own, its rows in the order of their event times: the outputs of
a row do not depend on where shards end.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from streams.batch.records.rows import RowProblem, Rows, Taught
from streams.batch.windows.keys import Key
from streams.contract.task import Task

if TYPE_CHECKING:
    from streams.learning.teacher import Teacher

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
