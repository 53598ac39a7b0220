"""From the device's loop to the spool: the loop puts an event into memory, a thread writes it.

Every `SYNC_S` the thread takes what has come, notes it in the device's memory (notebook.py),
encodes it as one Arrow batch and appends it to the spool, which syncs it. While the disk is full
events wait in memory, at most `LIMIT`; beyond that the oldest are given up and declared lost when
the disk writes again. Events that a metered line does not get are declared too, see metering.py.
"""

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from edge_client.spool.queue import Spool
from edge_client.spool.sampling import HOLD_ROWS, HOLD_S, REASON, Sampling
from streams.contract.records import encode_batch, event_rows
from streams.contract.task import Task

log = logging.getLogger(__name__)

T = TypeVar("T")

SYNC_S = 0.05
LIMIT = 20_000
ROWS_PER_FRAME = 512  # a whole message, where so many come at once
EXPIRE_S = 60.0  # how often it looks for events that are too old
FRAME_BYTES = 500_000  # a frame is never split: it must fit into a message


class Event(NamedTuple):
    """One inference: segment (channels, samples), outputs (outputs,), and the true label
    (label_size,) that the device was told.

    `first_us` and `time_us` are the event times of the segment's ends. `truth` and `position_us`,
    the place in the data, are what a replay is measured by; they never leave the device.
    """

    time_us: int
    model: str
    outputs: np.ndarray
    label: np.ndarray | None
    segment: np.ndarray
    first_us: int = 0
    position_us: int = 0
    truth: np.ndarray | None = None


def rows_per_frame(task: Task) -> int:
    """As many events as surely fit into FRAME_BYTES, at least one."""
    channels, samples = task.segment_shape
    values = channels * samples if task.upload == "segment" else 0
    return max(1, min(ROWS_PER_FRAME, FRAME_BYTES // (4 * (values + task.outputs) + 200)))


class SpoolWriter(threading.Thread):
    """Writes events into the spool until it is stopped, then what is left, then ends."""

    def __init__(
        self,
        task: Task,
        spool: Spool,
        limit: int = LIMIT,
        *,
        sampling: Sampling | None = None,
        note: Callable[[Sequence[Event]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="recorder", daemon=True)
        self._task = task
        self._spool = spool
        self._limit = limit
        self._sampling = sampling or Sampling()
        self._clock = clock
        self._note = note
        self._rows = rows_per_frame(task)
        self._put: deque[Event] = deque()  # by the loop, not yet seen by the thread
        self._events: deque[Event] = deque()
        # Times of events that gave way while a write did not come back: a deque, for two threads.
        self._overrun: deque[int] = deque()
        self._given_up = 0
        self._held = 0  # events that are not sent, behind the spool's last seq
        self._held_mark = 0
        self._held_since = 0.0
        self._expired_at = float("-inf")
        self._ending = threading.Event()
        self.error: str | None = None

    def put(self, event: Event) -> None:
        """Take an event over; never waits for the disk, also where a write does not come back."""
        self._put.append(event)
        if len(self._put) > self._limit:
            with contextlib.suppress(IndexError):  # the thread has just taken them
                self._overrun.append(self._put.popleft().time_us)

    @property
    def waiting(self) -> int:
        return len(self._put) + len(self._events)

    def run(self) -> None:
        while not self._ending.wait(SYNC_S if len(self._put) < self._rows else 0.0):
            self.write()
        self.write(last=True)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write what is left and end."""
        self._ending.set()
        self.join(timeout_s)

    def write(self, *, last: bool = False) -> None:
        """Move all waiting events into the spool, oldest first; `last`: hold none back longer."""
        self._take()
        try:
            while self._events or self._given_up:
                while len(self._events) > self._limit:
                    self._events.popleft()
                    self._given_up += 1
                if self._given_up:
                    self._declare_held()
                    self._spool.declare_lost(self._given_up, "disk-full")
                    self._given_up = 0
                self._write_frame()
            waited_s = self._clock() - self._held_since
            if last or waited_s >= HOLD_S or self._held >= HOLD_ROWS:
                self._declare_held()
            if self._clock() - self._expired_at >= EXPIRE_S:
                self._spool.expire()
                self._expired_at = self._clock()
        except OSError as exc:
            if self.error is None:
                log.warning("the spool cannot be written (%s): events wait in memory", exc)
            self.error = f"spool: {exc}"
            return
        if self.error is not None:
            log.warning("the spool is written again")
            self.error = None

    def _take(self) -> None:
        """What the loop has put since the last time."""
        self._given_up += len(_drained(self._overrun))
        new = _drained(self._put)
        if new and self._note is not None:
            self._note(new)
        self._events.extend(new)

    def _write_frame(self) -> None:
        events = self._next_events()
        if not events:
            return
        self._declare_held()
        leaves = self._task.upload == "segment"  # here it is decided, and nowhere else
        segments = np.stack([e.segment for e in events]) if leaves else None
        rows = event_rows(
            self._task,
            first=self._spool.next_seq,
            times=np.array([e.time_us for e in events], np.int64),
            model=[e.model for e in events],
            outputs=np.stack([e.outputs for e in events]),
            labels=[e.label for e in events],
            segments=segments,
        )
        self._spool.append(len(events), encode_batch(rows), mark=events[-1].time_us)
        for _ in events:  # only now: a frame that failed keeps its events
            self._events.popleft()

    def _next_events(self) -> list[Event]:
        """Those that are sent and stand together, at most a frame; what is held back before them
        is counted and given away."""
        if self._sampling.mode in ("everything", "nothing"):
            return list(itertools.islice(self._events, self._rows))
        events: list[Event] = []
        while len(events) < min(len(self._events), self._rows):
            event, seq = self._events[len(events)], self._spool.next_seq + self._held + len(events)
            labelled = event.label is not None
            if self._sampling.sends(self._task, seq, event.outputs, labelled):
                events.append(event)
            elif events:
                break
            else:
                self._hold(self._events.popleft())
        return events

    def _hold(self, event: Event) -> None:
        self._held_since = self._held_since if self._held else self._clock()
        self._held_mark = event.time_us
        self._held += 1

    def _declare_held(self) -> None:
        if self._held:
            self._spool.declare_lost(self._held, REASON, self._held_mark)
            self._held = 0


def _drained(queue: deque[T]) -> list[T]:
    """What stands in a queue now; another thread may put into it, and take from it, meanwhile."""
    found = []
    with contextlib.suppress(IndexError):
        for _ in range(len(queue)):
            found.append(queue.popleft())
    return found
