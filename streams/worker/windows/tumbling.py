"""Event-time windows of one device. Pure: the caller passes the clock.

A device's watermark is the largest event time that it has sent. A window closes when the watermark
passes the time after which no event joins it (`Task.window`) by more than the task's lateness, when
the device has been silent for the task's `idle_close_s`, or when it has been open for so long that
the device's event time must be slow or stand still (`Task.open_s`). Later rows of a closed window
reopen it and are due at once: they become its next revision. A label that comes while its event's
window is open is the event's; of others the store alone has the label.

Here are windows of which an event's time alone says which one it is in; `cut` has the others.

Silence and openness are measured in the time in which messages could have come: a device is silent
only while the worker would have heard it. Time in which the broker did not answer, or had messages
that the worker had not taken in yet (it was stopped, full, or busy with a commit), says nothing
about a device. A `Clock` counts this time.

Event times too far in the future belong to no window: otherwise a single wrong timestamp would make
all later events of the device late.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np

from streams.contract.accounting import IntervalSet
from streams.contract.events.batches import EventColumns
from streams.contract.task import Task

STEP_S = 3.0  # that one answer counts at most; Faust's consumer waits 1.5 s for messages
FUTURE = -1  # the "window" of events from the future
REUSED = -2  # that of events whose numbers other events had before
ANY_TIME = 2**62
FUTURE_S = 3600.0  # how far a live event may be ahead of the worker's clock


def believed_us(task: Task, now_us: int) -> int:
    """Return the latest event time that a correct clock can have; a recording's may be any."""
    return ANY_TIME if task.source == "recorded" else now_us + round(FUTURE_S * 1e6)


class SentAgain(NamedTuple):
    """letter: the dead letter that a message is, sent again; renews: its refused events are new
    ones, as long as they keep their numbers."""

    letter: bytes = b""
    renews: bool = False


FIRST_TIME = SentAgain()


@dataclass(slots=True)
class Message:
    """One message of `events` in flight; it can be acknowledged when `unsealed` is 0."""

    offset: int
    token: object  # needed to acknowledge it
    size: int = 0  # bytes in memory
    unsealed: int = 0
    heard_s: float = 0.0
    trace: str = ""  # its header `traceparent`, if it is sampled
    again: SentAgain = FIRST_TIME


@dataclass(frozen=True, slots=True)
class WindowSlice:
    """Consecutive events of one message in one window."""

    message: Message
    events: EventColumns
    window: int  # its start, microseconds, or FUTURE
    first_us: int  # event times of the first and the latest event
    latest_us: int

    @property
    def rows(self) -> int:
        return self.events.count

    def split(self, starts: np.ndarray) -> "Iterator[WindowSlice]":
        """Yield slices where the window changes; starts: (rows,) that of each event's."""
        edges = [0, *(np.flatnonzero(np.diff(starts)) + 1).tolist(), len(starts)]
        for begin, end in pairwise(edges):
            part, own = self.events.part(begin, end), self.events.columns.times[begin:end]
            yield WindowSlice(self.message, part, int(starts[begin]), int(own[0]), int(own.max()))


@dataclass(frozen=True)
class Window:
    """The rows of one device's window that are sealed together, ordered by event time."""

    partition: int
    device: str
    start: int
    pieces: tuple[WindowSlice, ...]

    @cached_property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)


def split(
    task: Task, message: Message, events: EventColumns, believed_us: int = ANY_TIME
) -> Iterator[WindowSlice]:
    """Split consecutive events where the window changes; the slices share their memory. Of windows
    that are cut later, slices have the time of their earliest event."""
    times = events.columns.times
    earliest, latest = int(times.min()), int(times.max())
    start = earliest - earliest % task.window_us if task.aligned else earliest
    if latest <= believed_us and (latest < start + task.window_us or not task.aligned):
        yield WindowSlice(message, events, start, int(times[0]), latest)  # all in one, as is usual
        return
    starts = times - times % task.window_us if task.aligned else np.full_like(times, earliest)
    starts = np.where(times > believed_us, FUTURE, starts)
    yield from WindowSlice(message, events, start, int(times[0]), latest).split(starts)


def reused(
    message: Message, events: EventColumns, counted: IntervalSet, after_us: int, believed_us: int
) -> Iterator[WindowSlice]:
    """Yield those of consecutive events whose numbers other events had: the ones that are `counted`
    are not later than `after_us`, the device's watermark, if it is known."""
    for first, last in counted if after_us >= 0 else ():
        part = events.part(first - events.first, last - events.first + 1)
        times = part.columns.times
        starts = np.where((times > after_us) & (times <= believed_us), REUSED, 0)
        pieces = WindowSlice(message, part, 0, 0, 0).split(starts)
        yield from (piece for piece in pieces if piece.window == REUSED)


@dataclass(slots=True)
class DeviceWindows:
    """The open windows of one device, whose windows are aligned."""

    task: Task
    watermark: int
    heard_s: float  # time of the last message, by the caller's clock
    open: dict[int, list[WindowSlice]] = field(default_factory=dict)

    def add(self, piece: WindowSlice, now_s: float) -> None:
        self.watermark = max(self.watermark, piece.latest_us)
        self.heard_s = max(self.heard_s, now_s)
        piece.message.heard_s = now_s
        self._put(piece)

    @property
    def busy(self) -> bool:
        """Whether a window is open."""
        return bool(self.open)

    def _put(self, piece: WindowSlice) -> None:
        self.open.setdefault(piece.window, []).append(piece)

    def _cut(self) -> None:
        """Put new slices into `open`, where they are not there yet."""

    def label(self, labels: Sequence[Mapping[str, Any]]) -> None:
        """Give labels to the events of open windows. A label has the fields of a `label_schema`,
        with times in microseconds."""
        named = {label["event_id"]: label for label in labels if label["event_id"] is not None}
        others = [label for label in labels if label["event_id"] is None]
        self._cut()
        for pieces in self.open.values():
            pieces[:] = [_labelled(piece, named, others) for piece in pieces]

    def due(self, now_s: float) -> list[int]:
        """Return the starts of the windows that close now, oldest first."""
        self._cut()
        windows = self.open
        if now_s - self.heard_s >= self.task.idle_close_s:
            return sorted(windows)
        passed = self.watermark - self.task.lateness_us
        old_s = now_s - self.task.open_s
        found = [
            start
            for start, pieces in windows.items()
            if self._closes(start, pieces) < passed or pieces[0].message.heard_s <= old_s
        ]
        return sorted(found) if len(found) > 1 else found

    def _closes(self, start: int, _pieces: Sequence[WindowSlice], /) -> int:
        """Return the event time after which no event joins an open window."""
        return start + self.task.window_us

    def holding(self, offset: int) -> list[int]:
        """Return the starts of the windows with a message up to `offset`, oldest first."""
        self._cut()
        return sorted(s for s, pieces in self.open.items() if pieces[0].message.offset <= offset)

    def take(self, start: int) -> tuple[WindowSlice, ...]:
        """Remove a window and return its slices, ordered by event time."""
        return tuple(sorted(self.open.pop(start), key=_order))


Label = Mapping[str, Any]


def _labelled(
    piece: WindowSlice, named: Mapping[str, Label], others: Sequence[Label]
) -> WindowSlice:
    """Return the slice with the labels that are of its events; a later one replaces an earlier.
    named: those of one event, by its `event_id`."""
    events, columns = piece.events, piece.events.columns
    found: list[tuple[np.ndarray | int, Label]] = [
        (_rows_of(events, label), label) for label in others if _may_be_of(piece, label)
    ]
    if named and events.ids is not None:
        places = enumerate(events.ids)
        found += [(at, named[name]) for at, name in places if name is not None and name in named]
    if not found:
        return piece
    values, known = columns.labels.copy(), columns.known.copy()
    for rows, label in found:
        values[rows], known[rows] = label["label"], True
    columns = columns._replace(labels=values, known=known)
    return replace(piece, events=replace(events, columns=columns))


def _may_be_of(piece: WindowSlice, label: Label) -> bool:
    """Return whether a label may be of an event of the slice."""
    seq, begin, events = label["event_seq"], label["from"], piece.events
    if seq is not None and not (events.first <= seq <= events.last):
        return False
    return begin is None or (begin <= piece.latest_us and piece.window <= label["to"])


def _rows_of(events: EventColumns, label: Label) -> np.ndarray:
    """Return (n,) bool: which events a label is of that names a time or a number."""
    rows = np.ones(events.count, bool)
    if label["event_seq"] is not None:
        rows &= np.arange(events.first, events.last + 1) == label["event_seq"]
        rows &= events.epoch == label["event_epoch"]
    if label["from"] is not None:
        times = events.columns.times
        rows &= (times >= label["from"]) & (times <= label["to"])
    return rows


def _order(piece: WindowSlice) -> tuple[int, str, int]:
    return piece.first_us, piece.events.epoch, piece.events.first


class Clock(Protocol):
    """What silence is measured with, in seconds of a partition. now_s: by the caller's clock."""

    def heard(self, partition: int, now_s: float, /) -> float:
        """Return when a message that comes now was heard."""
        ...

    def listened(self, partition: int, now_s: float, /) -> float:
        """Return up to when all messages are taken in."""
        ...


@dataclass
class ListeningClock:
    """Seconds of one partition, in place of the wall clock where silence is measured.

    An answer of the broker counts, with the time since the one before, once all messages that the
    partition had then are taken in.
    """

    seconds: float = 0.0
    _counted_s: float | None = None  # up to which answer
    _answer: tuple[float, int] | None = None  # that is looked at: its time and the partition's end

    def answered(self, at_s: float, end: int, taken: int) -> None:
        """Note when the broker answered last, by any clock, the partition's end by that answer, and
        the offset up to which messages are taken in."""
        if self._answer is None:
            if self._counted_s is not None and at_s <= self._counted_s:
                return
            self._answer = at_s, end
        answered_s, end = self._answer
        if taken < end:
            return
        self.seconds = self.heard(answered_s)
        self._counted_s, self._answer = answered_s, None

    def heard(self, at_s: float) -> float:
        """Return the seconds at which a message counts that is taken in at `at_s`: as if the next
        answer, which may be the one that brought it, counted at once."""
        if self._counted_s is None:
            return self.seconds
        return self.seconds + min(max(at_s - self._counted_s, 0.0), STEP_S)
