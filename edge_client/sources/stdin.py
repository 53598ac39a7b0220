"""Readings from standard input: one a line, as JSON or CSV.

    JSON lines   {"time_us": 1730000000000000, "values": [0.1, 0.2], "label": 1}
                 "label" may be left out; in place of "values" each channel may have its own field
    CSV          a header that names `time_us`, every channel of the task and perhaps `label`; an
                 empty label is none

Times are microseconds since 1970, UTC. A line that cannot be read is counted and passed over;
values that are not finite and gaps are the business of segments_of.
"""

import contextlib
import csv
import json
import math
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import IO, Any

from edge_client.sources.cuts import Skip
from streams.contract.errors import UsageError
from streams.contract.task import Reading, Task

MALFORMED = "malformed-line"
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


def lines_of(stream: IO[str], stop: threading.Event) -> Iterator[str]:
    """The lines of a stream as they come, until it or `stop` ends: a thread waits for them."""
    found: queue.Queue[str | None] = queue.Queue(maxsize=1000)

    def read() -> None:
        for line in stream:
            found.put(line)
        found.put(None)

    threading.Thread(target=read, name="source", daemon=True).start()
    while not stop.is_set():
        with contextlib.suppress(queue.Empty):
            line = found.get(timeout=0.2)
            if line is None:
                return
            yield line


def read_lines(task: Task, lines: Iterable[str], skip: Skip) -> Iterator[Reading]:
    """Readings of JSON lines or CSV, whichever the first line that is not empty says; UsageError
    where a CSV header lacks a column."""
    rest = iter(lines)
    first = next((line for line in rest if line.strip()), "")
    if not first:
        return
    if first.lstrip().startswith("{"):
        yield from _json_lines(task, first, rest, skip)
    else:
        yield from _csv_lines(task, first, rest, skip)


def json_reading(task: Task, found: Any) -> Reading:
    """A reading from parsed JSON; UNREADABLE for what is none."""
    values = found["values"] if "values" in found else [found[c] for c in task.channels]
    return _reading(task, found["time_us"], values, found.get("label"))


def _json_lines(task: Task, first: str, rest: Iterator[str], skip: Skip) -> Iterator[Reading]:
    for line in _chained(first, rest):
        if not line.strip():
            continue
        try:
            reading = json_reading(task, json.loads(line))
        except UNREADABLE:
            skip(MALFORMED, 0)
            continue
        yield reading


def _csv_lines(task: Task, first: str, rest: Iterator[str], skip: Skip) -> Iterator[Reading]:
    names = [name.strip() for name in next(csv.reader([first]))]
    missing = [name for name in ("time_us", *task.channels) if name not in names]
    if missing:
        raise UsageError(
            f"the first line of standard input is neither JSON nor a CSV header with "
            f"{', '.join(missing)}: write time_us,{','.join(task.channels)}[,label]"
        )
    for line in rest:
        if not line.strip():
            continue
        try:
            row = dict(zip(names, next(csv.reader([line])), strict=True))
            label = row.get("label", "").strip()
            values = [row[channel] for channel in task.channels]
            yield _reading(task, row["time_us"], values, label or None)
        except (ValueError, csv.Error, StopIteration):
            skip(MALFORMED, 0)


def _reading(task: Task, time_us: object, values: object, label: object) -> Reading:
    """ValueError or TypeError for what is no reading of this task."""
    if not isinstance(values, list) or len(values) != len(task.channels):
        raise ValueError("not a value for every channel")
    if isinstance(time_us, bool) or not isinstance(time_us, int | float | str):
        raise TypeError("no time")
    at = int(time_us)
    if not 0 <= at < 2**55:
        raise ValueError("a time before 1970 or beyond the year 3100")
    return Reading(at, [float(value) for value in values], _label(label))


def _label(label: Any) -> float | list[float] | None:
    if label is None:
        return None
    found = [float(value) for value in (label if isinstance(label, list) else [label])]
    if not all(map(math.isfinite, found)):
        raise ValueError("a label is not finite")
    return found if isinstance(label, list) else found[0]


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
