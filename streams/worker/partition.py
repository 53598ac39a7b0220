"""What a worker knows of one Kafka partition of `events` while it owns it.

Built from the store when the partition is assigned and thrown away when it is revoked:

    taken      per (device, epoch): the seqs that are in the store or in an open window
    dropped    per (device, epoch): the seqs that the store has as declared drops
    messages   in flight, in offset order, each with the number of its rows that are not sealed

An event is kept once, whatever is repeated. A message is acknowledged when all of its rows are
sealed and every message before it is acknowledged, so a committed offset never passes an event of
an open window.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from streams.contract.accounting import IntervalSet
from streams.contract.errors import ProcessFailed
from streams.contract.records import Drop, EventBatch
from streams.contract.task import Task
from streams.worker.windows import DeviceWindows, Message, Piece, Window, split

Source = tuple[str, str]  # (device, epoch)


@dataclass
class Position:
    """Where the store stands with one partition."""

    commit: int = 0  # of `scores`
    drops_commit: int = 0
    taken: dict[Source, IntervalSet] = field(default_factory=dict)
    dropped: dict[Source, IntervalSet] = field(default_factory=dict)
    watermark: dict[str, int] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)  # the latest window with a report
    drift: dict[str, list[tuple[int, str]]] = field(default_factory=dict)  # of the last windows


@dataclass(frozen=True)
class DeclaredDrop:
    """The part of a declared drop that the store is to take; `message` waits for it."""

    message: Message | None
    drop: Drop


class PartitionState:
    """The in-memory state of one owned partition."""

    def __init__(self, task: Task, partition: int, position: Position) -> None:
        self.partition = partition
        self.position = position
        self.rows = 0  # buffered in windows, closing ones included
        self._task = task
        self._devices: dict[str, DeviceWindows] = {}
        self._messages: deque[Message] = deque()
        self._first: int | None = None  # the lowest offset of this assignment
        self._next = 0
        self._drops: list[DeclaredDrop] = []

    def track(self, offset: int, token: object) -> Message | None:
        """Note a message that came; None when it came before in this assignment."""
        if self._first is None:
            self._first = self._next = offset
        if offset < self._first:
            # Messages of an earlier assignment are mixed in. To acknowledge one of them would pass
            # those that are still to come: a new process starts from the committed offset.
            raise ProcessFailed(
                f"partition {self.partition}: message {offset} came after {self._first}"
            )
        if offset < self._next:
            return None
        self._next = offset + 1
        message = Message(offset, token)
        self._messages.append(message)
        return message

    def add_events(self, message: Message, batch: EventBatch, now_s: float) -> None:
        """Put the events that are new into their windows."""
        taken = self.position.taken.setdefault((batch.device, batch.epoch), IntervalSet())
        for first, last in _absent((taken,), batch.first, batch.last):
            rows = batch.rows.slice(first - batch.first, last - first + 1)
            fresh = EventBatch(batch.device, batch.epoch, first, rows)
            for piece in split(self._task, message, fresh):
                self._windows_of(batch.device, now_s).add(piece, now_s)
                message.unsealed += piece.rows
            taken.add(first, last)
        self.rows += message.unsealed

    def _windows_of(self, device: str, now_s: float) -> DeviceWindows:
        if device not in self._devices:
            watermark = self.position.watermark.get(device, -1)
            self._devices[device] = DeviceWindows(watermark, now_s)
        return self._devices[device]

    def add_drop(self, message: Message, drop: Drop) -> None:
        """Keep what of a declared drop is neither scored, nor in a window, nor declared before."""
        source = drop.device, drop.epoch
        taken = self.position.taken.get(source, IntervalSet())
        dropped = self.position.dropped.setdefault(source, IntervalSet())
        for first, last in list(_absent((taken, dropped), drop.first, drop.last)):
            part = Drop(drop.device, drop.epoch, first, last, drop.reason)
            self._drops.append(DeclaredDrop(message, part))
            message.unsealed += 1
            dropped.add(first, last)

    def undeclared(self, piece: Piece, reason: str) -> list[Drop]:
        """Drops of the piece's events, without those that a device has declared already."""
        events = piece.events
        dropped = self.position.dropped.get((events.device, events.epoch), IntervalSet())
        return [
            Drop(events.device, events.epoch, first, last, reason)
            for first, last in _absent((dropped,), events.first, events.last)
        ]

    def close(self, now_s: float, *, everything: bool = False) -> list[Window]:
        """Take out the windows that are due; every open one when memory is short."""
        closed = []
        for device, windows in self._devices.items():
            for start in sorted(windows.open) if everything else windows.due(self._task, now_s):
                closed.append(Window(self.partition, device, start, windows.take(start)))
        return closed

    def take_drops(self) -> list[DeclaredDrop]:
        drops, self._drops = self._drops, []
        return drops

    def seal(self, pieces: Iterable[Piece], drops: Iterable[DeclaredDrop] = ()) -> None:
        """The store, or `dead-letters`, has these now."""
        for piece in pieces:
            piece.message.unsealed -= piece.rows
            self.rows -= piece.rows
        for declared in drops:
            if declared.message is not None:
                declared.message.unsealed -= 1

    def acknowledgeable(self) -> list[Message]:
        """Take out the messages, from the lowest offset on, of which nothing is unsealed."""
        done = []
        while self._messages and self._messages[0].unsealed == 0:
            done.append(self._messages.popleft())
        return done


def _absent(sets: tuple[IntervalSet, ...], first: int, last: int) -> Iterator[tuple[int, int]]:
    """The intervals of first..last that are in none of `sets`."""
    holes = [(first, last)]
    for known in sets:
        if known.end > first:
            free = known.missing(last + 1)
            holes = [
                (max(a, low), min(b, high))
                for a, b in free
                for low, high in holes
                if max(a, low) <= min(b, high)
            ]
    yield from holes
