"""Live readings, those of standard input among them, and which source a device reads.

Standard input has a reading a line, as JSON or CSV.

    JSON lines   {"time_us": 1730000000000000, "values": [0.1, 0.2], "label": 1}
                 "label" may be left out; in place of "values" each channel may have its own field
    CSV          a header that names `time_us`, every channel of the task and perhaps `label`; an
                 empty label is none

Times are microseconds since 1970, UTC. A line that cannot be read is counted and passed over;
values that are not finite and gaps are the business of segments_of.

The task says whether its readings are recorded or live; standard input and MQTT are always live:
their readings are cut as they come, and neither paced, moved in time nor repeated. What becomes of
readings that made no event, and what is irregular of those that did, is counted here as well.
"""

import contextlib
import csv
import json
import math
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edge_client.samples import labels
from edge_client.sources.replay import Cut, Replay, Skip, Source
from streams.contract.errors import UsageError
from streams.contract.task import Reading, Readings, Task
from streams.contract.task.channels import Category, given
from streams.segments import segmentation
from streams.segments.segmentation import segments_of

if TYPE_CHECKING:
    from edge_client.settings import EdgeSettings

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


@dataclass
class Live:
    """An iterable of Cuts that ends with its readings, or when `stop` is set."""

    task: Task
    readings: Callable[[], Iterable[Reading | Readings]]
    stop: threading.Event
    skip: Skip
    passes_done: int = 0

    def __iter__(self) -> Iterator[Cut]:
        cuts = segments_of(self.readings(), self.task, skip=self.skip)
        recorded = -1
        for first, last, segment, truth in cuts:
            recorded = max(recorded + 1, first)
            yield Cut(first, last, recorded, last, segment, truth)
            if self.stop.is_set():
                return


def open_source(
    task: Task,
    settings: "EdgeSettings",
    folder: Path,
    *,
    resume_after_us: int | None,
    stop: threading.Event,
    skip: Skip,
) -> Source:
    """Return the source that the settings name; nothing is read yet."""
    if settings.source == "stdin":
        stream = open(  # noqa: SIM115, read until the process ends
            sys.stdin.fileno(), encoding="utf-8", errors="replace", closefd=False
        )
        lines = LineReadings(task, Lines(stream, stop), skip)
        return Live(task, lambda: lines, stop, skip)
    if settings.mqtt is not None:
        from edge_client.sources.mqtt import MqttSource  # an extra

        mqtt = MqttSource(settings.mqtt, task, settings.device, stop, skip)
        return Live(task, lambda: mqtt, stop, skip)

    def readings() -> Iterable[Reading | Readings]:
        return task.readings(settings.device)

    if task.source == "live":
        return Live(task, readings, stop, skip)
    return Replay(
        task, readings, folder, speed=settings.speed, passes=settings.passes,
        resume_after_us=resume_after_us, stop=stop, skip=skip,
    )  # fmt: skip


# No event is missing for these: produced + skipped = readings, where one reading is the example.
IRREGULAR = segmentation.IRREGULAR | {
    labels.OUTCOMES_OVERFLOW, labels.UNFIT, labels.OVERFLOW,
}  # fmt: skip


class ReadingCounts:
    """Counts by reason since the start; sources and outcomes have threads of their own."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def skip(self, reason: str, _time_us: int) -> None:
        with self._lock:
            self._counts[reason] += 1

    def skipped(self) -> dict[str, int]:
        """Return the readings and answers that made no event."""
        return {why: n for why, n in self._all().items() if why not in IRREGULAR}

    def irregular(self) -> dict[str, int]:
        """Return the readings that are answered although something is wrong with them, and the
        labels that were not used."""
        return {why: n for why, n in self._all().items() if why in IRREGULAR}

    def _all(self) -> dict[str, int]:
        with self._lock:
            return dict(sorted(self._counts.items()))


def counted(counts: dict[str, int]) -> str:
    """Return counts by reason for a person: "gap 3, width 1"."""
    return ", ".join(f"{why} {n:,}" for why, n in counts.items())
