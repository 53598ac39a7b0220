"""What the frames of a queue are on the wire: messages of the topic `events`; those that the
producer has and that are not settled; and what the broker refuses for good:

1. a message of several events that is refused is sent again as messages of half as many; so are
   those after it, until PROBE_S have passed without a refusal
2. an event that is refused alone is declared dropped in its place, with the reason
3. the frame is settled when the broker has the declaration: the event counts as dropped

Nothing of a refusal is on disk. After a crash the event is sent, refused and declared again; the
worker knows a declaration that comes twice.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edge_client.spool.frames import DROPS, MOST_EVENTS, Declared, Frame, merged
from edge_client.spool.queue import Spool
from streams.contract.errors import MessageRefused
from streams.contract.events.compact import (
    Layout,
    decode_block,
    encode_block,
    joined,
)
from streams.contract.events.messages import (
    Drop,
    Wire,
    encode_block_message,
    encode_drop,
    encode_labels,
)
from streams.runtime.tracing import NOTHING, OFF, About, Span, Tracing

ROWS = 512  # of a message
PROBE_S = 60.0

log = logging.getLogger(__name__)


class Refusals:
    """How many events a message may have, and which ones are declared. The clock is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rows, self._at = ROWS, 0.0
        self._reasons: dict[int, str] = {}  # by seq, until the frame is settled

    @property
    def rows(self) -> int:
        """The most events of a message now."""
        if self._rows < ROWS and self._clock() - self._at >= PROBE_S:
            self._rows, self._at = min(ROWS, 2 * self._rows), self._clock()
        return self._rows

    def note(self, first: int, last: int, reason: str) -> None:
        """Note that a message of the events first..last was refused."""
        self._at = self._clock()
        if first == last:
            self._reasons[first] = reason
        else:
            self._rows = min(self._rows, (last - first + 1) // 2)

    def among(self, frames: Sequence[Frame]) -> list[Declared]:
        """Return the events of frames that are declared in place of being sent."""
        return [
            Declared(seq, seq, reason)
            for seq, reason in sorted(self._reasons.items())
            if any(frame.first <= seq < frame.first + frame.count for frame in frames)
        ]

    def runs(self, frames: Sequence[Frame]) -> Iterator[tuple[int, int, str | None]]:
        """Yield the events of consecutive frames as messages: first, last, and why they are
        declared; None for those that are sent."""
        at, end = frames[0].first, frames[-1].first + frames[-1].count
        for declared in [*self.among(frames), Declared(end, end, "")]:
            while at < declared.first:
                last = min(at + self._rows, declared.first) - 1
                yield at, last, None
                at = last + 1
            if at < end:
                yield declared
                at += 1

    def settle(self, frames: Sequence[Frame]) -> list[Declared]:
        """Forget the declared events of frames whose messages the broker has, and return them."""
        found = self.among(frames)
        for declared in found:
            del self._reasons[declared.first]
        return found


BYTES = 700_000  # of the frames of a message


class Message(NamedTuple):
    """One message, and the seqs that it carries, or `declares` dropped."""

    first: int
    last: int
    wire: Wire
    declares: bool = False
    span: Span = NOTHING  # until the broker has acknowledged it

    @property
    def size(self) -> int:
        key, value, headers = self.wire
        return len(key) + len(value) + sum(len(name) + len(text) for name, text in headers)


Messages = Callable[[Sequence[Frame], Refusals], list[Message]]  # of consecutive frames of a kind
Carry = Callable[[Sequence[Frame], int, int], Message]  # of the events first..last of frames
Declare = Callable[[Declared], list[Message]]


def of_events(layout: Layout, device: str, spool: Spool, tracing: Tracing = OFF) -> Messages:
    """Return what makes event frames one events/2 message and each declared drop a drops/1. What
    the broker has refused becomes smaller messages and drops."""

    def declare(entry: Declared) -> list[Message]:
        wire = encode_drop(Drop(device, spool.epoch, entry.first, entry.last, entry.reason))
        return [Message(entry.first, entry.last, wire, declares=True)]

    def carry(frames: Sequence[Frame], first: int, last: int) -> Message:
        block = _block(layout, frames, first, last)
        key, value, headers = encode_block_message(device, spool.epoch, first, block, layout)
        about: About = {"device": device, "epoch": spool.epoch, "first": first, "last": last}
        trace = tracing.begin("device.deliver", about, kind="PRODUCER")
        return Message(first, last, (key, value, [*headers, *trace.headers]), span=trace)

    def messages(frames: Sequence[Frame], refusals: Refusals) -> list[Message]:
        if frames[0].kind == DROPS:
            entries = merged([d for frame in frames for d in frame.declarations()])
            return [message for entry in entries for message in declare(entry)]
        return list(_of_rows(frames, refusals, carry, declare))

    return messages


def of_labels(device: str, queue: Spool) -> Messages:
    """Return what makes frames of the queue of labels one labels/1 message. Labels that the queue
    had to drop, and those that the broker refuses, are no messages: the device counts them."""

    def carry(frames: Sequence[Frame], first: int, last: int) -> Message:
        begin = frames[0].first
        lines = b"".join(frame.payload for frame in frames).splitlines(keepends=True)
        body = b"".join(lines[first - begin : last - begin + 1])
        return Message(first, last, encode_labels(device, queue.epoch, first, body))

    def messages(frames: Sequence[Frame], refusals: Refusals) -> list[Message]:
        if frames[0].kind == DROPS:
            return []
        return list(_of_rows(frames, refusals, carry, lambda _entry: []))

    return messages


def _of_rows(
    frames: Sequence[Frame], refusals: Refusals, carry: Carry, declare: Declare
) -> Iterator[Message]:
    """Yield the messages of event frames."""
    for first, last, reason in refusals.runs(frames):
        if reason is None:
            yield carry(frames, first, last)
        else:
            yield from declare(Declared(first, last, reason))


def _block(layout: Layout, frames: Sequence[Frame], first: int, last: int) -> bytes:
    """Return the events first..last as one block: the frame's own, if they are all of one frame."""
    if len(frames) == 1 and frames[0].count == last - first + 1:
        return frames[0].payload
    begin = frames[0].first
    parts = [decode_block(layout, f.payload, f.first, MOST_EVENTS) for f in frames]
    return encode_block(joined(parts).part(first - begin, last - begin + 1))


def groups(frames: list[Frame], most_rows: int) -> list[list[Frame]]:
    """Group frames into messages: of one kind, consecutive, within the rows and BYTES."""
    groups: list[list[Frame]] = []
    rows = size = 0
    for frame in frames:
        last = groups[-1][-1] if groups else None
        joins = (
            last is not None
            and last.kind == frame.kind
            and last.first + last.count == frame.first
            and rows + frame.count <= most_rows
            and size + len(frame.payload) <= BYTES
        )
        if joins:
            groups[-1].append(frame)
            rows, size = rows + frame.count, size + len(frame.payload)
        else:
            groups.append([frame])
            rows, size = frame.count, len(frame.payload)
    return groups


@dataclass
class BatchInFlight:
    """Messages in flight and the frames that they settle.

    `failed`: the batch is to be sent again. `refused`: messages that are never taken as they are.
    Answers come by the producer's thread, and by the uplink's if they are there at once: they are
    appended, which is safe in both, and counted.
    """

    frames: list[Frame]
    at: float
    messages: int
    size: int = 0
    failed: Exception | None = None
    refused: list[tuple[Message, MessageRefused]] = field(default_factory=list)
    answers: list[Message] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """The number of messages without an answer."""
        return self.messages - len(self.answers)

    def answer(self, message: Message) -> Callable[[Exception | None], None]:
        """Return what takes the producer's answer to one of the messages."""

        def answered(error: Exception | None) -> None:
            if isinstance(error, MessageRefused):
                self.refused.append((message, error))
            elif error is not None:
                self.failed = error
                return
            self.answers.append(message)  # first: a trace may not come before the delivery
            if error is None:
                message.span.end()

        return answered
