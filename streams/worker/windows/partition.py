"""State of one owned partition of `events`.

Built from the store when the partition is assigned, discarded when it is revoked:

    taken      per (device, epoch): the seqs that are stored, in an open window, or refused
    refused    the part of `taken` that is on `dead-letters` and not in the store; only a dead
               letter that is sent again brings it back
    dropped    per (device, epoch): the seqs that the store has in `drops`, including refused ones
    labelled   per (device, epoch of its queue of labels): the numbers of the labels that are stored
               or wait for a flush
    placed     the seqs that are stored of events which are counted by their place in Kafka, from
               the offset on at which the assignment starts: each offset comes once in it
    messages   in flight, in offset order, each with the number of its unsealed rows

Repeated events are taken once. A message is acknowledged when all its rows are sealed and all
messages before it are acknowledged, so a committed offset never passes an event of an open window.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from streams.contract.accounting import IntervalSet
from streams.contract.errors import ProcessFailed
from streams.contract.events.batches import EventColumns
from streams.contract.events.labels import LabelBatch, label_rows
from streams.contract.events.messages import Drop
from streams.contract.task import Task
from streams.worker.windows.cut import open_windows
from streams.worker.windows.tumbling import (
    ANY_TIME,
    REUSED,
    DeviceWindows,
    Message,
    Window,
    WindowSlice,
    reused,
    split,
)

Source = tuple[str, str]  # (device, epoch)


@dataclass
class StorePosition:
    """The store's position in one partition."""

    commits: Counter[str] = field(default_factory=Counter)  # by table
    taken: dict[Source, IntervalSet] = field(default_factory=dict)
    refused: dict[Source, IntervalSet] = field(default_factory=dict)
    dropped: dict[Source, IntervalSet] = field(default_factory=dict)
    labelled: dict[Source, IntervalSet] = field(default_factory=dict)
    placed: IntervalSet = field(default_factory=IntervalSet)
    watermark: dict[str, int] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)  # the latest window with a report
    drift: dict[str, list[tuple[int, str]]] = field(default_factory=dict)  # of the last windows

    @property
    def commit(self) -> int:
        """The last commit of `scores`."""
        return self.commits["scores"]


@dataclass(frozen=True)
class DeclaredDrop:
    """The part of a declared drop that must be stored; `message` waits for it."""

    message: Message | None
    drop: Drop


@dataclass(frozen=True)
class NewLabels:
    """The labels of a message that must be stored; `message` waits for them."""

    message: Message
    labels: LabelBatch


class PartitionState:
    """The in-memory state of one owned partition."""

    def __init__(
        self, partition: int, position: StorePosition, start: int = 0, placed: str = ""
    ) -> None:
        self.partition, self.placed = partition, placed
        self.position = position
        self.rows = 0  # buffered in windows, closing ones included
        self.bytes = 0  # of the messages in flight
        self._devices: dict[str, DeviceWindows] = {}
        self._messages: deque[Message] = deque()
        self._first: int | None = None  # the lowest offset of this assignment
        self._next = start
        self._due: deque[Window] = deque()
        self._drops: list[DeclaredDrop] = []
        self._labels: list[NewLabels] = []
        self._unbelieved: list[WindowSlice] = []

    @property
    def done(self) -> int | None:
        """The offset up to which all messages are acknowledged; None if it is not known yet."""
        return self._messages[0].offset if self._messages else self._next or None

    @property
    def next_offset(self) -> int:
        """The offset after the last message that was taken in, or where the assignment starts; 0 if
        that is not known yet."""
        return self._next

    @property
    def in_flight(self) -> int:
        return len(self._messages)

    def track(self, offset: int, token: object, size: int = 0) -> Message | None:
        """Return a new message in flight; None if it already came in this assignment."""
        if self._first is None:
            self._first = self._next = offset
        if offset < self._first:
            # A message of an earlier assignment. Acknowledging it would skip messages that are
            # still to come, so fail: a new process starts at the committed offset.
            raise ProcessFailed(
                f"partition {self.partition}: message {offset} came after {self._first}"
            )
        if offset < self._next:
            return None
        self._next = offset + 1
        message = Message(offset, token, size)
        self._messages.append(message)
        self.bytes += size
        return message

    def add_events(
        self,
        task: Task,
        message: Message,
        events: EventColumns,
        now_s: float,
        *,
        believed_us: int = ANY_TIME,
    ) -> None:
        """Add new events to their windows."""
        source, before = (events.device, events.epoch), message.unsealed
        taken = self.position.taken.setdefault(source, IntervalSet())
        refused = self.position.refused.get(source, IntervalSet())
        if message.again.renews:
            for interval in refused.within(events.first, events.last):
                taken.remove(*interval)
            refused.remove(events.first, events.last)
        new = taken.missing(events.first, events.last)
        if placed := events.epoch == self.placed and not message.again.renews:
            new = list(IntervalSet(new).minus(self.position.placed))
        pieces = list[WindowSlice]()
        if not placed and new != [(events.first, events.last)]:
            counted = IntervalSet([(events.first, events.last)]).minus(IntervalSet(new), refused)
            watermark = self._windows_of(task, events.device, now_s).watermark
            pieces += reused(message, events, counted, watermark, believed_us)
        for first, last in new:
            fresh = events.part(first - events.first, last - events.first + 1)
            pieces += split(task, message, fresh, believed_us)
            if not placed:
                taken.add(first, last)
        for piece in pieces:
            if piece.window < 0:
                self._unbelieved.append(piece)
            else:
                self._windows_of(task, events.device, now_s).add(piece, now_s)
            message.unsealed += piece.rows
        self.rows += message.unsealed - before

    def _windows_of(self, task: Task, device: str, now_s: float) -> DeviceWindows:
        if device not in self._devices:
            watermark = self.position.watermark.get(device, -1)
            newest = self.position.newest.get(device)
            self._devices[device] = open_windows(task, watermark, newest, now_s)
        return self._devices[device]

    def add_drop(self, message: Message, drop: Drop) -> None:
        """Add the part of a drop that is not scored, not in a window and not yet declared."""
        source = drop.device, drop.epoch
        taken = self.position.taken.get(source, IntervalSet())
        dropped = self.position.dropped.setdefault(source, IntervalSet())
        for first, last in IntervalSet([(drop.first, drop.last)]).minus(taken, dropped):
            part = Drop(drop.device, drop.epoch, first, last, drop.reason)
            self._drops.append(DeclaredDrop(message, part))
            message.unsealed += 1
            dropped.add(first, last)

    def add_lost(self, drops: Iterable[Drop]) -> list[DeclaredDrop]:
        """Return declarations of events whose messages are gone."""
        declared = [DeclaredDrop(None, drop) for drop in drops]
        for drop in drops:
            source = drop.device, drop.epoch
            self.position.dropped.setdefault(source, IntervalSet()).add(drop.first, drop.last)
        return declared

    def add_labels(self, message: Message, batch: LabelBatch) -> None:
        """Add the labels that are not stored yet."""
        known = self.position.labelled.setdefault((batch.device, batch.epoch), IntervalSet())
        if placed := batch.epoch == self.placed:
            known = self.position.placed
        for first, last in known.missing(batch.first, batch.last):
            rows = batch.rows.slice(first - batch.first, last - first + 1)
            fresh = LabelBatch(batch.device, batch.epoch, first, rows)
            self._labels.append(NewLabels(message, fresh))
            message.unsealed += 1
            if not placed:
                known.add(first, last)

    def label(self, batch: LabelBatch) -> None:
        """Give labels to the events of the device's open windows, whose reports count them then."""
        windows = self._devices.get(batch.device)
        if windows is not None and windows.busy:
            windows.label(label_rows(batch.rows))

    def refuse(self, piece: WindowSlice, reason: str) -> list[Drop]:
        """Mark events as refused; return the drops of them that `drops` does not have yet: none
        where other events have their numbers."""
        if piece.window == REUSED:
            return []
        events, source = piece.events, (piece.events.device, piece.events.epoch)
        dropped = self.position.dropped.setdefault(source, IntervalSet())
        holes = IntervalSet([(events.first, events.last)]).minus(dropped)
        dropped.add(events.first, events.last)
        self.position.taken.setdefault(source, IntervalSet()).add(events.first, events.last)
        self.position.refused.setdefault(source, IntervalSet()).add(events.first, events.last)
        return [Drop(events.device, events.epoch, first, last, reason) for first, last in holes]

    def queue_due(self, now_s: float) -> int:
        """Queue the windows that are due for a flush; return the number of queued rows."""
        self._due += self._take(lambda windows: windows.due(now_s))
        return sum(window.rows for window in self._due)

    def take_due(self, limit: int) -> list[Window]:
        """Remove and return queued windows of about `limit` rows, never two of the same device and
        start: the second one is the next revision."""
        closed: list[Window] = []
        seen: set[tuple[str, int]] = set()
        rows = 0
        while self._due and rows < limit:
            key = self._due[0].device, self._due[0].start
            if key in seen:
                break
            seen.add(key)
            closed.append(self._due.popleft())
            rows += closed[-1].rows
        return closed

    @property
    def behind(self) -> bool:
        """Whether windows are queued that the last flush did not take."""
        return bool(self._due)

    def relieve(self) -> list[Window]:
        """Remove and return the windows with the older half of the messages in flight, but for
        second ones of the same device and start, which are queued."""
        if not self._messages:
            return []
        middle = self._messages[len(self._messages) // 2].offset
        self._due += self._take(lambda windows: windows.holding(middle))
        return self.take_due(self.rows)

    def _take(self, chosen: Callable[[DeviceWindows], list[int]]) -> list[Window]:
        return [
            Window(self.partition, device, start, windows.take(start))
            for device, windows in self._devices.items()
            if windows.busy
            for start in chosen(windows)
        ]

    def delay_us(self, now_us: int) -> int:
        """Return `now_us` minus the oldest watermark of a device with open windows, or 0."""
        marks = [windows.watermark for windows in self._devices.values() if windows.busy]
        return max(0, now_us - min(marks)) if marks else 0

    def take_others(self) -> tuple[list[DeclaredDrop], list[NewLabels], list[WindowSlice]]:
        """Remove and return what a flush stores, and parks, beside windows."""
        found = self._drops, self._labels, self._unbelieved
        self._drops, self._labels, self._unbelieved = [], [], []
        return found

    def seal(self, pieces: Iterable[WindowSlice]) -> None:
        """Mark events as sealed: they are in the store or on `dead-letters`."""
        for piece in pieces:
            piece.message.unsealed -= piece.rows
            self.rows -= piece.rows

    def acknowledgeable(self) -> list[Message]:
        """Remove and return the sealed messages, from the lowest offset up to the first gap."""
        done = []
        while self._messages and self._messages[0].unsealed == 0:
            message = self._messages.popleft()
            self.bytes -= message.size
            done.append(message)
        return done


def due_windows(
    states: Mapping[int, PartitionState], now_s: Mapping[int, float], limit: int
) -> list[Window]:
    """Remove and return due windows of about `limit` rows: the same from every partition, and more
    from those that have more where others have less. now_s: by the clock of each partition."""
    waiting = sorted((state.queue_due(now_s[p]), p) for p, state in states.items())
    found: list[Window] = []
    for i, (_, partition) in enumerate(waiting):
        taken = states[partition].take_due(limit // (len(waiting) - i))
        found += taken
        limit -= sum(window.rows for window in taken)
    return found
