"""What a device puts on `events`, without Arrow: keys, values and headers; see records.py."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streams.contract.events.compact import Columns, Layout, encode_rows
from streams.contract.task import Task

EVENTS_1 = "events/1"
EVENTS_2 = "e2"  # the header of events/2
DROPS_1 = "drops/1"
LABELS_1 = "labels/1"
TRACEPARENT = "traceparent"  # W3C Trace Context, on messages that are traced
TAUGHT = "taught"  # header on `scores`: the teacher's outputs for the device
SEQ_REUSED = "seq-reused"  # of a dead letter: other events are counted by its numbers

Headers = list[tuple[str, bytes]]
Wire = tuple[bytes, bytes, Headers]  # key, value, headers

_SAMPLED = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][13579bdf]")


@dataclass(frozen=True)
class Drop:
    """A device's declaration that it dropped the events first..last, with the reason.

    >>> from tidewheel import Drop
    >>> Drop("phone-1", "e1", first=10, last=19, reason="disk-full").reason
    'disk-full'
    """

    device: str
    epoch: str
    first: int
    last: int
    reason: str


def task_layout(task: Task) -> Layout:
    """Return the columns of the task's events."""
    if task.upload != "segment":
        return Layout(task.outputs, task.label_size, 0)
    channels, samples = task.segment_shape
    return Layout(task.outputs, task.label_size, channels * samples)


def event_columns(
    task: Task,
    *,
    first: int,
    times: np.ndarray,
    model: str | list[str],
    outputs: np.ndarray,
    labels: Sequence[np.ndarray | None],
    segments: np.ndarray | None,
) -> Columns:
    """Return consecutive events as they are sent.

    times (n,) int64 us; outputs (n, outputs); labels (label_size,) or None each; segments
    (n, channels, samples), None if the task uploads predictions only.
    """
    values = np.zeros((len(labels), task.label_size), np.float32)
    known = np.zeros(len(labels), bool)
    for i, label in enumerate(labels):
        if label is not None:
            values[i], known[i] = label, True
    sent = segments
    if segments is not None:
        sent = np.ascontiguousarray(segments, np.float32).reshape(len(segments), -1)
    return Columns(
        first, times, model, np.ascontiguousarray(outputs, np.float32), values, known, sent
    )  # fmt: skip


def encode_block_message(device: str, epoch: str, first: int, block: bytes, layout: Layout) -> Wire:
    """Return an events/2 message of a block with this layout."""
    headers = [(EVENTS_2, layout.digest.encode())]
    return device.encode(), encode_rows(epoch, first, block), headers


def encode_drop(drop: Drop) -> Wire:
    """Return a drops/1 message."""
    named = headers_of(DROPS_1, drop.device, drop.epoch, drop.first, drop.last)
    return drop.device.encode(), b"", [*named, ("reason", drop.reason.encode())]


def encode_label_lines(rows: Sequence[Mapping[str, object]]) -> bytes:
    """Return labels as the body of labels/1; see labels.py."""
    return b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)


def encode_labels(device: str, epoch: str, first: int, body: bytes) -> Wire:
    """Return a labels/1 message of lines."""
    last = first + body.count(b"\n") - 1
    return device.encode(), body, headers_of(LABELS_1, device, epoch, first, last)


def headers_of(schema: str, device: str, epoch: str, first: int, last: int) -> Headers:
    return [
        ("schema", schema.encode()),
        ("device", device.encode()),
        ("epoch", epoch.encode()),
        ("first", str(first).encode()),
        ("last", str(last).encode()),
    ]


def sampled_parent(headers: Iterable[tuple[str, bytes | None]]) -> str:
    """Return the text of the header `traceparent` if it is a sampled one; "" for every other, none
    or several."""
    found = [
        (text or b"").decode(errors="replace") for name, text in headers if name == TRACEPARENT
    ]
    return found[0] if len(found) == 1 and _SAMPLED.fullmatch(found[0]) else ""
