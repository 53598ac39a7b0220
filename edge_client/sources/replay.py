"""A recording, replayed as if it came from a sensor: paced, repeated, resumed.

The times of a recording start anywhere. Its first reading's time, rounded down to a split period,
is position 0. Event time is `origin` + position: for dated recordings (DATED_FROM_US on) the origin
is that first time, so that events keep their dates in the first pass; for others it is a day before
the first start, or the start itself at speed 1. The next pass begins a whole number of split
periods later, so that a segment of the data is on the same side of the train and held-out split in
every pass. A restart goes on after the segment with the mark `resume_after_us`: several segments
may have one time, and the spool keeps the mark of the last one that was written.

    <device>/replay.json   {"origin_us": ..., "span_us": ...}; span_us is null in the first pass
"""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edge_client.samples.table import split_period_us
from streams.contract.task import Reading, Readings, Task
from streams.runtime.files import write_atomic
from streams.segments.segmentation import segments_of

Skip = Callable[[str, int], None]  # (reason, time in microseconds) of what cannot be used


@dataclass(frozen=True)
class Cut:
    """A segment with its event times.

    `recorded_us` is its place in the data, the same in every pass: the time of its first reading
    as the source has it. `mark_us` is that of a replay, after which a restart continues. Each
    segment has its own: the time of the segment, or one more than the segment before where that is
    not earlier.
    """

    first_us: int
    last_us: int
    recorded_us: int
    mark_us: int
    segment: np.ndarray
    truth: np.ndarray | None


class Source(Protocol):
    """Segments as they come; `passes_done` through a recording."""

    passes_done: int

    def __iter__(self) -> Iterator[Cut]: ...


MOST_LATE = 256  # segments in a row: then the recording itself has gone back
DATED_FROM_US = 10**15  # September 2001
DAY_US = 24 * 3600 * 1_000_000


@dataclass
class Replay:
    """An iterable of Cuts. `speed` 1 is real time; 0 is as fast as possible."""

    task: Task
    readings: Callable[[], Iterable[Reading | Readings]]
    folder: Path
    speed: float
    passes: int | None
    resume_after_us: int | None
    stop: threading.Event
    skip: Skip
    passes_done: int = 0
    _anchor: tuple[float, int] | None = None
    _latest_us: int | None = None  # of the segments before, since a gap
    _late: int = 0  # segments in a row that are earlier

    def __post_init__(self) -> None:
        self._resume = -1 if self.resume_after_us is None else self.resume_after_us
        self._file = self.folder / "replay.json"
        self._origin, self._span = self._load()

    def pace(self, speed: float) -> None:
        """Go on at another speed; from any thread."""
        self.speed, self._anchor = speed, None

    def _load(self) -> tuple[int | None, int | None]:
        try:
            state = json.loads(self._file.read_bytes())
            return int(state["origin_us"]), state["span_us"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None, None

    def _save(self) -> None:
        state = {"origin_us": self._origin, "span_us": self._span}
        write_atomic(self._file, json.dumps(state).encode())

    def _begin_at(self, base_us: int) -> int:
        """The event time of position 0, fixed at the first start."""
        if self._origin is None:
            now = time.time_ns() // 1000
            if self.speed != 1:  # faster than life: start a day back, so as not to overtake it
                now -= DAY_US
            period = split_period_us(self.task)
            self._origin = base_us if base_us >= DATED_FROM_US else now // period * period
            self._save()
        return self._origin

    def __iter__(self) -> Iterator[Cut]:
        self.passes_done = 0
        if self._origin is not None and self._span is not None and self._resume >= self._origin:
            self.passes_done = (self._resume - self._origin) // self._span
        while not self.stop.is_set() and (self.passes is None or self.passes_done < self.passes):
            readings = iter(self.readings())
            first_reading = next(readings, None)
            if first_reading is None:
                return
            period = split_period_us(self.task)
            base = first_reading.time_us // period * period
            start = self._begin_at(base) + self.passes_done * (self._span or 0)
            end = None
            for cut in self._one_pass(itertools.chain([first_reading], readings), base, start):
                end = cut.mark_us - start
                if cut.mark_us > self._resume:
                    if not self._paced(cut):
                        return
                    self._resume = cut.mark_us  # a source that fails is resumed after it
                    yield cut
            if end is None:
                return  # nothing to repeat
            self._end_pass(end, period)

    def _one_pass(
        self, readings: Iterable[Reading | Readings], base: int, start: int
    ) -> Iterator[Cut]:
        recorded, mark = -1, start - 1
        for first, last, segment, truth in segments_of(readings, self.task, skip=self.skip):
            moved = start - base
            recorded, mark = max(recorded + 1, first), max(mark + 1, last + moved)
            yield Cut(first + moved, last + moved, recorded, mark, segment, truth)

    def _end_pass(self, end: int, period: int) -> None:
        self.passes_done += 1
        if self._span is None:
            self._span = (end // period + 1) * period
            self._save()

    def _paced(self, cut: Cut) -> bool:
        """Wait until a segment is due; False when the replay is to stop.

        A gap in the data, forward or back, is not waited for, and a replay that fell behind does
        not catch up in a burst. A segment that is earlier than the latest one is not waited for
        either, and does not change the pace of those after it: event times need not be in order.
        After more than MOST_LATE of them in a row the pace starts again from their times.
        """
        latest_us = cut.last_us if self._latest_us is None else self._latest_us
        self._late = self._late + 1 if cut.last_us < latest_us else 0
        gap_us = max(cut.first_us - latest_us, latest_us - cut.last_us)
        if gap_us > self.task.max_gap_us or self._late > MOST_LATE:
            self._anchor, self._late, latest_us = None, 0, cut.last_us
        if self.speed > 0 and cut.last_us >= latest_us:
            now = time.monotonic()
            anchor = self._anchor
            if anchor is None:
                self._anchor = anchor = (now, cut.last_us)
            wait_s = anchor[0] + (cut.last_us - anchor[1]) / 1e6 / self.speed - now
            if wait_s < -1.0:
                self._anchor = (now, cut.last_us)
            elif wait_s > 0:
                self.stop.wait(wait_s)
        self._latest_us = max(latest_us, cut.last_us)
        return not self.stop.is_set()
