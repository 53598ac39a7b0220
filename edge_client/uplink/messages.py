"""What the frames of a queue are on the wire: messages of the topic `events`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa

from edge_client.spool.frames import DROPS, Declared, Frame, merged
from edge_client.spool.queue import Spool
from edge_client.spool.task_versions import Versions
from edge_client.uplink.refusals import Refusals
from streams.contract.events.batches import encode_batch, own_batch
from streams.contract.events.records import (
    Drop,
    EventBatch,
    Headers,
    encode_drop,
    encode_events,
    encode_labels,
)

BYTES = 700_000  # of the frames of a message

Wire = tuple[bytes, bytes, Headers]  # key, value, headers


class Message(NamedTuple):
    """One message, and the seqs that it carries, or `declares` dropped."""

    first: int
    last: int
    wire: Wire
    declares: bool = False

    @property
    def size(self) -> int:
        key, value, headers = self.wire
        return len(key) + len(value) + sum(len(name) + len(text) for name, text in headers)


Messages = Callable[[Sequence[Frame], Refusals], list[Message]]  # of consecutive frames of a kind
Carry = Callable[[int, pa.RecordBatch, int | None], Wire]  # first seq, rows, the task's version
Declare = Callable[[Declared], list[Message]]
More = Callable[[int, int], Headers]  # headers of the message of the events first..last


def no_more(_first: int, _last: int) -> Headers:
    """Add no header."""
    return []


def of_events(device: str, spool: Spool, more: More = no_more) -> Messages:
    """Return what makes event frames one events/2 message, with `more` headers, and each declared
    drop a drops/1. What the broker has refused becomes smaller messages and drops."""
    versions = Versions(spool)

    def declare(entry: Declared) -> list[Message]:
        wire = encode_drop(Drop(device, spool.epoch, entry.first, entry.last, entry.reason))
        return [Message(entry.first, entry.last, wire, declares=True)]

    def carry(first: int, rows: pa.RecordBatch, version: int | None) -> Wire:
        batch = EventBatch(device, spool.epoch, first, rows)
        key, value, headers = encode_events(batch, version)
        return key, value, [*headers, *more(first, batch.last)]

    def messages(frames: Sequence[Frame], refusals: Refusals) -> list[Message]:
        if frames[0].kind == DROPS:
            entries = merged([d for frame in frames for d in frame.declarations()])
            return [message for entry in entries for message in declare(entry)]
        return _of_rows(frames, versions, refusals, carry, declare)

    return messages


def of_labels(device: str, queue: Spool) -> Messages:
    """Return what makes frames of the queue of labels one labels/1 message. Labels that the queue
    had to drop, and those that the broker refuses, are no messages: the device counts them."""
    versions = Versions(queue)

    def carry(first: int, rows: pa.RecordBatch, version: int | None) -> Wire:
        body = encode_batch(rows)
        return encode_labels(device, queue.epoch, first, rows.num_rows, body, version)

    def messages(frames: Sequence[Frame], refusals: Refusals) -> list[Message]:
        if frames[0].kind == DROPS:
            return []
        return _of_rows(frames, versions, refusals, carry, lambda _entry: [])

    return messages


def _of_rows(
    frames: Sequence[Frame], versions: Versions, refusals: Refusals, carry: Carry, declare: Declare
) -> list[Message]:
    """Return the messages of event frames, of each task version by itself."""
    found: list[Message] = []
    for version, own in versions.runs(frames):
        found += _of_version(own, version, refusals, carry, declare)
    return found


def _of_version(
    frames: Sequence[Frame],
    version: int | None,
    refusals: Refusals,
    carry: Carry,
    declare: Declare,
) -> list[Message]:
    begin = frames[0].first
    batches = [own_batch(frame.payload) for frame in frames]
    rows = pa.concat_batches(batches) if len(batches) > 1 else batches[0]
    found: list[Message] = []
    for first, last, reason in refusals.runs(frames):
        if reason is not None:
            found += declare(Declared(first, last, reason))
            continue
        own = rows.slice(first - begin, last - first + 1)
        found.append(Message(first, last, carry(first, own, version)))
    return found


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
