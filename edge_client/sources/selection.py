"""Which source a device reads: its task's readings, standard input, or an MQTT topic.

The task says whether its readings are recorded or live; standard input and MQTT are always live:
their readings are cut as they come, and neither paced, moved in time nor repeated. What becomes of
readings that made no event, and what is irregular of those that did, is counted here as well.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.samples import delayed_labels, labels
from edge_client.sources.cuts import Cut, Skip, Source
from edge_client.sources.replay import Replay
from edge_client.sources.stdin import LineReadings, Lines
from streams.contract.task import Reading, Readings, Task
from streams.segments import segmentation
from streams.segments.segmentation import segments_of

if TYPE_CHECKING:
    from edge_client.settings import EdgeSettings


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
    delayed_labels.OVERFLOW, delayed_labels.UNFIT, labels.OVERFLOW,
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
