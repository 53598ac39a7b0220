"""Event-time windows that depend on the events before them: sessions, counts, a task's own. Pure.

A device's open windows are those that `Task.window` cuts from its buffered events in the order of
their times, after the last window that was closed. They are cut when they are looked at, from the
window on that the earliest new event may be in: a window does not depend on later events.

An event is late if its time is not after that of the last closed window's last event. From that
window's start on it belongs to that window, as its next revision. Earlier ones make windows of
their own, cut from such late events only. After a restart the last closed window is the store's
newest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from streams.contract.task import Before, Task
from streams.contract.task.windows import FULL
from streams.worker.windows.tumbling import DeviceWindows, WindowSlice


@dataclass(slots=True)
class CutWindows(DeviceWindows):
    """The open windows of one device; `closed` is its last closed one."""

    closed: Before | None = None
    _new: list[WindowSlice] = field(default_factory=list)
    _found: dict[int, Before] = field(default_factory=dict)  # what the open windows have

    @property
    def busy(self) -> bool:
        return bool(self._new or self.open)

    def _put(self, piece: WindowSlice) -> None:
        self._new.append(piece)

    @property
    def _last(self) -> Before | None:
        """The device's last window so far."""
        newest, closed = max(self._found.values(), default=None), self.closed
        if newest is None or closed is None or newest.start_us > closed.start_us:
            return newest or closed
        reopened = newest.start_us == closed.start_us
        return closed._replace(last_us=max(closed.last_us, newest.last_us)) if reopened else closed

    def _cut(self) -> None:
        """Put the new slices, and those that they may change, into their windows."""
        if not self._new:
            return
        pieces, self._new = self._new, []
        times = _times(pieces)
        last = self._last
        if (last is None or last.last_us < times[0]) and (np.diff(times) >= 0).all():
            self._place(pieces, self.task.window.starts(times, last))  # in order, as is usual
            return
        earliest = int(times.min())
        since = max((start for start in self.open if start <= earliest), default=earliest)
        moved = [start for start in self.open if start >= since]
        pieces = [piece for start in moved for piece in self.open.pop(start)] + pieces
        for start in moved:
            del self._found[start]
        pieces.sort(key=lambda piece: piece.message.offset)  # the first one is the oldest message
        times = _times(pieces)
        order = np.argsort(times, kind="stable")
        starts = np.empty_like(times)
        starts[order] = self._starts(times[order])
        self._place(pieces, starts)

    def _place(self, pieces: Sequence[WindowSlice], starts: np.ndarray) -> None:
        """Put slices into their windows; starts: (events,) those of their events."""
        at = 0
        for piece in pieces:
            own = starts[at : at + piece.rows]
            at += piece.rows
            for part in piece.split(own):
                start, last, events = part.window, part.latest_us, part.rows
                if (found := self._found.get(start)) is not None:
                    last, events = max(last, found.last_us), events + found.events
                self._found[start] = Before(start, last, events)
                self.open.setdefault(start, []).append(part)

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

    def _closes(self, start: int, _pieces: Sequence[WindowSlice], /) -> int:
        _, last, events = self._found[start]
        if self.closed is not None and start == self.closed.start_us:
            last = max(last, self.closed.last_us)
        return self.task.window.closes(start, last, events)

    def take(self, start: int) -> tuple[WindowSlice, ...]:
        _, last, _ = self._found.pop(start)
        if self.closed is None or start > self.closed.start_us:
            self.closed = Before(start, last, FULL)
        elif start == self.closed.start_us:
            self.closed = Before(start, max(last, self.closed.last_us), FULL)
        return super(CutWindows, self).take(start)


def _times(pieces: Sequence[WindowSlice]) -> np.ndarray:
    return np.concatenate([piece.events.columns.times for piece in pieces])


def open_windows(task: Task, watermark: int, newest: int | None, now_s: float) -> DeviceWindows:
    """Return the windows of a device of which the store's latest event is at `watermark`, in the
    window that starts at `newest`."""
    if task.aligned:
        return DeviceWindows(task, watermark, now_s)
    closed = None if newest is None else Before(newest, watermark, FULL)
    return CutWindows(task, watermark, now_s, closed=closed)
