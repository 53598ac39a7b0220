"""Event-time windows that depend on the events before them: sessions, counts, a task's own. Pure.

A device's open windows are those that `Task.window` cuts from its buffered events in the order of
their times, after the last window that was closed. They are cut when they are looked at, from the
window on that the earliest new event may be in: a window does not depend on later events.

An event that is no later than the last one of the last closed window is late: it is of that window
(its next revision) if it is no earlier than its start, else of a window that is cut from such late
events alone. After a restart the last closed window is the store's newest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from streams.contract.task import Closed, Task
from streams.worker.windows.tumbling import DeviceWindows, WindowSlice


@dataclass(slots=True)
class CutWindows(DeviceWindows):
    """The open windows of one device; `closed` is its last closed one."""

    closed: Closed | None = None
    _new: list[WindowSlice] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        return bool(self._new or self.open)

    def _put(self, piece: WindowSlice) -> None:
        self._new.append(piece)

    def _cut(self) -> None:
        """Put the new slices, and those that they may change, into their windows."""
        if not self._new:
            return
        earliest = min(int(piece.events.columns.times.min()) for piece in self._new)
        since = max((start for start in self.open if start <= earliest), default=earliest)
        moved = [start for start in self.open if start >= since]
        pieces = [piece for start in moved for piece in self.open.pop(start)] + self._new
        self._new = []
        pieces.sort(key=lambda piece: piece.message.offset)  # the first one is the oldest message
        times = np.concatenate([piece.events.columns.times for piece in pieces])
        order = np.argsort(times, kind="stable")
        starts = np.empty_like(times)
        starts[order] = self._starts(times[order])
        place = 0
        for piece in pieces:
            own = starts[place : place + piece.rows]
            place += piece.rows
            for part in piece.split(own):
                self.open.setdefault(part.window, []).append(part)

    def _starts(self, times: np.ndarray) -> np.ndarray:
        """Return the start of each event's window, of times in order."""
        window, closed = self.task.window, self.closed
        if closed is None:
            return window.starts(times)
        older, late = np.searchsorted(times, [closed.start_us, closed.last_us + 1])
        parts = [
            window.starts(times[:older]) if older else times[:0],
            np.full(late - older, closed.start_us),
            window.starts(times[late:], closed) if late < len(times) else times[:0],
        ]
        return np.concatenate(parts)

    def _closes(self, start: int, pieces: Sequence[WindowSlice], /) -> int:
        last = max(piece.latest_us for piece in pieces)
        if self.closed is not None and start == self.closed.start_us:
            last = max(last, self.closed.last_us)
        return self.task.window.closes(start, last, sum(piece.rows for piece in pieces))

    def take(self, start: int) -> tuple[WindowSlice, ...]:
        taken = super(CutWindows, self).take(start)
        last = max(piece.latest_us for piece in taken)
        if self.closed is None or start > self.closed.start_us:
            self.closed = Closed(start, last)
        elif start == self.closed.start_us:
            self.closed = Closed(start, max(last, self.closed.last_us))
        return taken


def open_windows(task: Task, watermark: int, newest: int | None, now_s: float) -> DeviceWindows:
    """Return the windows of a device of which the store's latest event is at `watermark`, in the
    window that starts at `newest`."""
    if task.aligned:
        return DeviceWindows(task, watermark, now_s)
    closed = None if newest is None else Closed(newest, watermark)
    return CutWindows(task, watermark, now_s, closed=closed)
