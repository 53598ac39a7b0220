"""Writing events to the spool: the loop puts an event into memory, a thread writes it.

At an event, but not before `SYNC_S` after the last time or a full frame, the thread takes the new
ones, encodes them as blocks and appends these to the spool, which syncs several together. Then it
records them with their seqs (samples/accuracy.py): what a device remembers was produced, so that a
replay which answers again after a crash counts nothing twice. At most `LIMIT` events wait in
memory; older ones are discarded and declared lost, and not recorded: `disk-full` when the disk
works again, `queue-full` where they come faster than it writes.

On a metered connection a random share of the events is sent. The others are dropped, with the
reason `metered`, and counted in the account (produced = delivered + dropped + pending). Design:

1. The writer decides once per event, when it assigns the seq. The sample depends on the seq, so it
   is reproducible; a later decision could differ after a crash or a change of the setting.
2. A run of such events is one DROPS frame of fresh seqs between the EVENTS frames, so seqs have no
   gap, the reader settles it like other frames, and a restart finds it. There is no other state.
3. A run ends at an event that is sent, after HOLD_S, or at HOLD_ROWS. Until then it is in memory.
   A crash loses it: its seqs were not assigned, so the events were never produced; a replay
   produces them again, because the mark is that of the last written event.

A crash at any step of 2 leaves a complete frame, or a torn one, which is truncated.
"""

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from edge_client.spool.frames import Block
from edge_client.spool.queue import Spool
from streams.contract.events.compact import encode_block
from streams.contract.events.messages import event_columns
from streams.contract.task import Task

REASON = "metered"
HOLD_S, HOLD_ROWS = 5.0, 1000

SYNC_S = 0.5
LIMIT = 20_000
ROWS_PER_FRAME = 512  # rows of a full message
FRAME_BYTES = 500_000  # a frame is never split, so it must fit into a message

log = logging.getLogger(__name__)


def sampled(seq: int, share: float) -> bool:
    """Return whether a seq is in the sample; a larger share contains every smaller one."""
    return mixed(seq) < share * 2**64


def mixed(seq: int) -> int:
    """Return the SplitMix64 hash, 64 bits, of a number (Steele, Lea and Flood, 2014)."""
    z = (seq + 1) * 0x9E3779B97F4A7C15 & 2**64 - 1
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
    z = (z ^ z >> 27) * 0x94D049BB133111EB & 2**64 - 1
    return z ^ z >> 31


class Event(NamedTuple):
    """One inference: segment (channels, samples), outputs (outputs,), float32 in C order, and the
    true label (label_size,) if the device knows it.

    `first_us` and `time_us` are the event times of the segment's ends. `truth` and `recorded_us`
    (the place in the data) are for measuring a replay and for `outcomes`, and it is resumed after
    `mark_us`; they never leave the device.
    """

    time_us: int
    model: str
    outputs: np.ndarray
    label: np.ndarray | None
    segment: np.ndarray
    first_us: int = 0
    recorded_us: int = 0
    mark_us: int = 0
    truth: np.ndarray | None = None


def most_rows(task: Task, size: int) -> int:
    """Return how many events always fit into so many bytes, at least one."""
    channels, samples = task.segment_shape
    values = channels * samples if task.upload == "segment" else 0
    return max(1, size // (4 * (values + task.outputs) + 200))


class SpoolWriter(threading.Thread):
    """Writes events to the spool until it is stopped, then the remaining ones; share: of those that
    are sent, 0 to 1."""

    def __init__(
        self,
        task: Task,
        spool: Spool,
        limit: int = LIMIT,
        *,
        share: float = 1.0,
        note: Callable[[Sequence[Event], int], None] = lambda _events, _first: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="recorder", daemon=True)
        self._task = task
        self._spool = spool
        self._limit = limit
        self._share = share
        self._clock = clock
        self._note = note
        self._rows = min(ROWS_PER_FRAME, most_rows(task, FRAME_BYTES))
        self._batch = max(1, most_rows(task, spool.batch_bytes) // self._rows) * self._rows
        self._put: deque[Event] = deque()  # from the loop, not yet taken by the thread
        self._overrun = 0  # events that the loop has discarded from there while a write blocks
        self._overrun_noted = 0  # of these, by the thread
        self._events: deque[Event] = deque()
        self._discarded = 0
        self._held: list[Event] = []  # that are not sent, after the spool's last seq
        self._held_since = 0.0
        self._ending = threading.Event()
        self._woken = threading.Event()  # there may be something to write
        self._many = threading.Event()  # a frame of it: not waiting for SYNC_S
        self.error: str | None = None

    def put(self, event: Event) -> None:
        """Accept an event; never waits for the disk, even while a write blocks.

        Without a lock: the loop alone appends and counts; the thread takes until there is none.
        """
        put = self._put
        put.append(event)
        waiting = len(put)
        if waiting > self._limit:
            with contextlib.suppress(IndexError):  # the thread took all meanwhile
                put.popleft()
                self._overrun += 1
        if waiting == 1:
            self._woken.set()
        elif waiting == self._rows:
            self._many.set()

    @property
    def waiting(self) -> int:
        return len(self._put) + len(self._events)

    @property
    def full(self) -> bool:
        """Whether a source that can wait should: half of the limit waits for a disk that works."""
        return self.error is None and self.waiting >= self._limit // 2

    def run(self) -> None:
        while not self._ending.is_set():
            self._woken.wait(HOLD_S)
            self._woken.clear()
            self.write()
            self._many.wait(SYNC_S)
        self.write(last=True)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write the remaining events and end the thread."""
        self._ending.set()
        self._woken.set()
        self._many.set()
        self.join(timeout_s)

    def write(self, *, last: bool = False) -> None:
        """Move all waiting events to the spool, oldest first; `last` also ends a run of drops."""
        self._take()
        try:
            while self._events or self._discarded:
                while len(self._events) > self._limit:
                    self._events.popleft()
                    self._discarded += 1
                if self._discarded:
                    self._declare_held()
                    reason = "queue-full" if self.error is None else "disk-full"
                    self._spool.declare_lost(self._discarded, reason)
                    self._discarded = 0
                self._write_frames()
            waited_s = self._clock() - self._held_since
            if last or waited_s >= HOLD_S or len(self._held) >= HOLD_ROWS:
                self._declare_held()
        except OSError as exc:
            if self.error is None:
                log.warning("the spool cannot be written (%s): events wait in memory", exc)
            self.error = f"spool: {exc}"
            return
        if self.error is not None:
            log.warning("the spool can be written again")
            self.error = None

    def _take(self) -> None:
        self._many.clear()
        overrun = self._overrun
        self._discarded += overrun - self._overrun_noted
        self._overrun_noted = overrun
        with contextlib.suppress(IndexError):  # until it is empty: the loop wakes at the first one
            while True:
                self._events.append(self._put.popleft())

    def _write_frames(self) -> None:
        events = self._next_events()
        if not events:
            return
        self._declare_held()
        rows = self._rows
        first = self._spool.extend(
            [self._block(events[at : at + rows]) for at in range(0, len(events), rows)]
        )
        forget = self._events.popleft
        for _ in events:  # after the write, so a failed one keeps its events
            forget()
        self._note(events, first)

    def _block(self, events: Sequence[Event]) -> Block:
        times, models, outputs, labels, segments = list(zip(*events, strict=True))[:5]
        leaves = self._task.upload == "segment"  # the only place that decides it
        columns = event_columns(
            self._task,
            first=0,  # a block does not have it
            times=np.array(times, np.int64),
            model=models[0] if models.count(models[0]) == len(models) else models,
            outputs=_stacked(outputs),
            labels=labels,
            segments=None,
        )
        block = encode_block(columns, segments if leaves else None)
        return Block(len(events), block, events[-1].mark_us)

    def _next_events(self) -> list[Event]:
        """Return consecutive events to send, at most a batch, and a frame while the disk is full;
        counts and removes those before them that are not sent."""
        most = self._batch if self.error is None else self._rows
        if self._share >= 1.0:
            return list(itertools.islice(self._events, most))
        events: list[Event] = []
        while len(events) < min(len(self._events), most):
            event, seq = self._events[len(events)], self._next_seq + len(events)
            if sampled(seq, self._share):
                events.append(event)
            elif events:
                break
            else:
                self._hold(self._events.popleft())
        return events

    @property
    def _next_seq(self) -> int:
        return self._spool.next_seq + len(self._held)

    def _hold(self, event: Event) -> None:
        self._held_since = self._held_since if self._held else self._clock()
        self._held.append(event)

    def _declare_held(self) -> None:
        if held := self._held:
            first = self._spool.next_seq
            self._spool.declare_lost(len(held), REASON, held[-1].mark_us)
            self._held = []
            self._note(held, first)


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return float32 arrays of one shape as `np.stack` does, in a tenth of its time for small
    ones."""
    joined = np.frombuffer(b"".join(arrays), np.float32)  # type: ignore[arg-type]
    return joined.reshape(len(arrays), *arrays[0].shape)
