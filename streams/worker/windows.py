"""Event-time windows of one device. Pure: the caller passes the clock.

A device's watermark is the largest event time it has sent. A tumbling window closes when the
watermark has passed its end by more than the task's lateness, or when the device has been silent
for the task's `idle_close_s` of wall time. Rows of a window that closed earlier open it again and
are due at once: they become its next revision.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa

from streams.contract.records import EventBatch, times_us
from streams.contract.task import Task


@dataclass
class Message:
    """One message of `events` in flight: it may be acknowledged once nothing of it is unsealed."""

    offset: int
    token: object  # what the shell needs to acknowledge it
    unsealed: int = 0


@dataclass(frozen=True)
class Piece:
    """Consecutive events of one message that fall into one window."""

    message: Message
    events: EventBatch
    window: int  # its start, microseconds

    @property
    def rows(self) -> int:
        return int(self.events.rows.num_rows)


@dataclass(frozen=True)
class Window:
    """The rows of one device's window that are sealed together, in event time."""

    partition: int
    device: str
    start: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)


def split(task: Task, message: Message, batch: EventBatch) -> Iterator[Piece]:
    """Cut consecutive events where the window changes; the pieces share the batch's memory."""
    times = times_us(batch.rows.column("time"))
    starts = times - times % task.window_us
    edges = [0, *(np.flatnonzero(np.diff(starts)) + 1).tolist(), len(starts)]
    for begin, end in pairwise(edges):
        rows: pa.RecordBatch = batch.rows.slice(begin, end - begin)
        part = EventBatch(batch.device, batch.epoch, batch.first + begin, rows)
        yield Piece(message, part, int(starts[begin]))


@dataclass
class DeviceWindows:
    """The open windows of one device."""

    watermark: int
    heard_s: float  # wall time of the last message, by the caller's clock
    open: dict[int, list[Piece]] = field(default_factory=dict)

    def add(self, piece: Piece, now_s: float) -> None:
        times = times_us(piece.events.rows.column("time"))
        self.watermark = max(self.watermark, int(times.max()))
        self.heard_s = max(self.heard_s, now_s)
        self.open.setdefault(piece.window, []).append(piece)

    def due(self, task: Task, now_s: float) -> list[int]:
        """The starts of the windows that close now, oldest first."""
        if now_s - self.heard_s >= task.idle_close_s:
            return sorted(self.open)
        passed = self.watermark - task.window_us - round(task.lateness_s * 1e6)
        return sorted(start for start in self.open if start < passed)

    def take(self, start: int) -> tuple[Piece, ...]:
        """Remove a window; its pieces in event time."""
        return tuple(sorted(self.open.pop(start), key=_order))


def _order(piece: Piece) -> tuple[int, str, int]:
    first_us = int(times_us(piece.events.rows.column("time").slice(0, 1))[0])
    return first_us, piece.events.epoch, piece.events.first
