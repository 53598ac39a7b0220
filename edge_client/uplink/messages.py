"""What the frames of a queue are on the wire: messages of the topic `events`."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from edge_client.spool.frames import DROPS, Frame, merged
from edge_client.spool.queue import Spool
from streams.contract.events.batches import decode_batch, encode_batch
from streams.contract.events.labels import label_schema
from streams.contract.events.records import (
    Drop,
    Headers,
    encode_drop,
    encode_labels,
    event_schema,
    events_message,
)
from streams.contract.task import Task

Message = tuple[bytes, bytes, Headers]  # key, value, headers
Messages = Callable[[Sequence[Frame]], list[Message]]  # of frames of one kind, consecutive


def of_events(task: Task, device: str, spool: Spool) -> Messages:
    """Return what makes event frames one events/1 message, and each declared drop a drops/1."""
    schema = event_schema(task)

    def messages(frames: Sequence[Frame]) -> list[Message]:
        if frames[0].kind == DROPS:
            declared = [d for frame in frames for d in frame.declarations()]
            return [
                encode_drop(Drop(device, spool.epoch, d.first, d.last, d.reason))
                for d in merged(declared)
            ]
        count = sum(frame.count for frame in frames)
        body = _joined(frames, schema)
        return [events_message(device, spool.epoch, frames[0].first, count, body)]

    return messages


def of_labels(task: Task, device: str, queue: Spool) -> Messages:
    """Return what makes frames of the queue of labels one labels/1 message. Labels that the queue
    had to drop are no messages: the device counts them."""
    schema = label_schema(task)

    def messages(frames: Sequence[Frame]) -> list[Message]:
        if frames[0].kind == DROPS:
            return []
        count = sum(frame.count for frame in frames)
        return [encode_labels(device, queue.epoch, frames[0].first, count, _joined(frames, schema))]

    return messages


def _joined(frames: Sequence[Frame], schema: pa.Schema) -> bytes:
    if len(frames) == 1:
        return frames[0].payload
    parts = [decode_batch(frame.payload, schema) for frame in frames]
    return encode_batch(pa.concat_batches(parts))
