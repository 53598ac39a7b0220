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
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import IO, Any

from edge_client.sources.cuts import Skip
from streams.contract.errors import UsageError
from streams.contract.task import Reading, Task
from streams.contract.task.channels import Category, given

MALFORMED = "malformed-line"
UNREADABLE = (
    ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, csv.Error,
    StopIteration,
)  # fmt: skip
WAITING = 1000  # lines


class Lines:
    """The lines of a stream as they come, until it or `stop` ends.

    One thread reads for as long as the process lives: iterated again it goes on with the next line,
    so that a source that is restarted loses none to the iterator before.
    """

    def __init__(self, stream: IO[str], stop: threading.Event) -> None:
        self._stream, self._stop = stream, stop
        self._found: queue.Queue[str | None] = queue.Queue(maxsize=WAITING)
        self._reader = threading.Thread(target=self._read, name="source", daemon=True)
        self._ended = False

    def _read(self) -> None:
        for line in self._stream:
            self._found.put(line)
        self._found.put(None)

    def __iter__(self) -> Iterator[str]:
        if self._reader.ident is None:
            self._reader.start()
        while not self._stop.is_set() and not self._ended:
            with contextlib.suppress(queue.Empty):
                line = self._found.get(timeout=0.2)
                if line is None:
                    self._ended = True
                    return
                yield line


class LineReadings:
    """Readings of lines of JSON or CSV, whichever the first line that is not empty says.

    That line decides for the process's life: iterated again it goes on in the same format.
    Raises UsageError where a CSV header lacks a column.
    """

    def __init__(self, task: Task, lines: Iterable[str], skip: Skip) -> None:
        self._task, self._lines, self._skip = task, lines, skip
        self._format: Callable[[Task, str], Reading] | None = None

    def __iter__(self) -> Iterator[Reading]:
        for line in self._lines:
            if not line.strip():
                continue
            if self._format is None:
                if not line.lstrip().startswith("{"):
                    self._format = partial(_csv_reading, _columns(self._task, line))
                    continue
                self._format = _json_reading_of
            try:
                reading = self._format(self._task, line)
            except UNREADABLE:
                self._skip(MALFORMED, 0)
                continue
            yield reading


def json_reading(task: Task, found: Any) -> Reading:
    """A reading from parsed JSON; UNREADABLE for what is none."""
    values = found["values"] if "values" in found else [found[c] for c in given(task.channels)]
    return _reading(task, found["time_us"], values, found.get("label"))


def _json_reading_of(task: Task, line: str) -> Reading:
    return json_reading(task, json.loads(line))


def _columns(task: Task, header: str) -> list[str]:
    names = [name.strip() for name in next(csv.reader([header]))]
    columns = given(task.channels)
    missing = [name for name in ("time_us", *columns) if name not in names]
    if missing:
        raise UsageError(
            f"the first line of standard input is neither JSON nor a CSV header with "
            f"{', '.join(missing)}: write time_us,{','.join(columns)}[,label]"
        )
    return names


def _csv_reading(names: list[str], task: Task, line: str) -> Reading:
    row = dict(zip(names, next(csv.reader([line])), strict=True))
    label = row.get("label", "").strip()
    values = [row[channel] for channel in given(task.channels)]
    return _reading(task, row["time_us"], values, label or None)


def _reading(task: Task, time_us: object, values: object, label: object) -> Reading:
    """ValueError or TypeError for what is no reading of this task."""
    channels = given(task.channels)
    if not isinstance(values, list) or len(values) != len(channels):
        raise ValueError("not a value for every channel")
    if isinstance(time_us, bool) or not isinstance(time_us, int | float | str):
        raise TypeError("no time")
    at = int(time_us)
    if not 0 <= at < 2**55:
        raise ValueError("a time before 1970 or beyond the year 3100")
    pairs = zip(channels, values, strict=True)
    taken: Any = [v if isinstance(channel, Category) else float(v) for channel, v in pairs]
    return Reading(at, taken, _label(label))


def _label(label: Any) -> float | list[float] | None:
    if label is None:
        return None
    found = [float(value) for value in (label if isinstance(label, list) else [label])]
    if not all(map(math.isfinite, found)):
        raise ValueError("a label is not finite")
    return found if isinstance(label, list) else found[0]
