"""Replaying a task's data as if it came from a sensor: paced, repeated, resumed.

Event time is the recording's time from `origin` on; the second pass follows the first after a
pause that is a whole number of split periods, so that a segment of the data falls on the same side
of the train and held-out split in every pass. A restart goes on behind `resume_after_us`.

Readings whose times are dates (from LIVE_FROM_US on) come from a sensor: they are taken as they
come, neither paced, moved nor repeated.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_client.samples.splits import split_period_us
from streams.contract.task import Reading, Task
from streams.runtime.disk import write_atomic
from streams.segments.segmentation import segments_of

LIVE_FROM_US = 10**15  # September 2001


@dataclass(frozen=True)
class Cut:
    """A segment with its event times; `position_us` is its place in the data, in every pass."""

    first_us: int
    last_us: int
    position_us: int
    segment: np.ndarray
    truth: np.ndarray | None


class Replay:
    """An iterable of Cuts. `speed` 1 is real time; 0 is as fast as it goes."""

    def __init__(
        self,
        task: Task,
        device: str,
        folder: Path,
        *,
        speed: float,
        passes: int | None,
        resume_after_us: int | None,
        stop: threading.Event,
        skip: Callable[[str, int], None],
        readings: Callable[[], Iterable[Reading]] | None = None,
    ) -> None:
        self._task = task
        self._readings = readings or (lambda: task.readings(device))
        self._speed = speed
        self._passes = passes
        self._resume = -1 if resume_after_us is None else resume_after_us
        self._stop = stop
        self._skip = skip
        self._file = folder / "replay.json"
        self._origin, self._span = self._load()
        self.passes_done = 0
        self.share_of_pass = 0.0
        self._anchor: tuple[float, int] | None = None

    def _load(self) -> tuple[int, int | None]:
        try:
            state = json.loads(self._file.read_bytes())
            return int(state["origin_us"]), state["span_us"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            period = split_period_us(self._task)
            now = time.time_ns() // 1000
            if self._speed != 1:  # faster than life: begin a day back, so as not to run ahead of it
                now -= 24 * 3600 * 1_000_000
            origin = now // period * period
            self._save(origin, None)
            return origin, None

    def _save(self, origin: int, span: int | None) -> None:
        state = {"origin_us": origin, "span_us": span}
        write_atomic(self._file, json.dumps(state).encode())

    def __iter__(self) -> Iterator[Cut]:
        self.passes_done = 0
        if self._span is not None and self._resume >= self._origin:
            self.passes_done = (self._resume - self._origin) // self._span
        while not self._stop.is_set() and (self._passes is None or self.passes_done < self._passes):
            start = self._origin + self.passes_done * (self._span or 0)
            end = 0
            for first, last, segment, truth in segments_of(
                self._readings(), self._task, skip=self._skip
            ):
                if first >= LIVE_FROM_US:  # a sensor: its times and its pace are what they are
                    yield Cut(first, last, first, segment, truth)
                    if self._stop.is_set():
                        return
                    continue
                end = last
                cut = Cut(start + first, start + last, first, segment, truth)
                if cut.last_us <= self._resume:
                    continue
                self.share_of_pass = min(1.0, first / self._span) if self._span else 0.0
                if not self._wait_until(cut.last_us):
                    return
                self._resume = cut.last_us  # a source that fails is taken up again behind it
                yield cut
            if not end:  # a sensor that has ended, or no data: nothing to repeat
                return
            self._end_pass(end)

    def _end_pass(self, end: int) -> None:
        self.passes_done += 1
        self.share_of_pass = 0.0
        if self._span is None:
            period = split_period_us(self._task)
            self._span = (end // period + 1) * period
            self._save(self._origin, self._span)

    def _wait_until(self, time_us: int) -> bool:
        """Pace; False when the replay is to stop. Time that is lost is not caught up in a burst."""
        if self._speed > 0:
            now = time.monotonic()
            if self._anchor is None:
                self._anchor = (now, time_us)
            wait = self._anchor[0] + (time_us - self._anchor[1]) / 1e6 / self._speed - now
            if wait < -1.0 or wait > 60.0 / self._speed:  # fell behind, or a pause in the data
                self._anchor = (now, time_us)
            elif wait > 0:
                self._stop.wait(wait)
        return not self._stop.is_set()
