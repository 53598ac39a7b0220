"""True labels that became known after the event: the messages labels/1 on `events`.

    header     schema  device  epoch  first  last     (as events have them; see records.py)
    body       an Arrow IPC stream of one batch in the columns of `label_schema`

A row labels all events of the device between two event times, both included; with `event_epoch` and
`event_seq` that event alone, since several may have one time. Labels have numbers of
their own, first..last, from 0 without holes in an epoch of the device's queue of labels; so a label
that comes twice is known. Of several labels of an event the one that was told last counts.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streams.contract.errors import MalformedRecord
from streams.contract.events.batches import (
    TIMESTAMP,
    decode_batch,
    encode_batch,
    float_rows,
    times_us,
)
from streams.contract.task import Task

LABELS_1 = "labels/1"
LABEL_SOURCES = ("user", "outcome")  # a person or a program on the device; the task's `outcomes`
LAST_US = 2**55  # after 3100


@dataclass(frozen=True)
class LabelBatch:
    """Consecutive labels of one device that became known after their events.

    `rows` has the columns of `label_schema`; `first` is the number of the first label in `epoch`,
    one life of the device's queue of labels.

    >>> import pyarrow as pa
    >>> from tidewheel import LabelBatch
    >>> LabelBatch("phone-1", "e1", 40, pa.RecordBatch.from_pylist([{"told": 1}])).last
    40
    """

    device: str
    epoch: str
    first: int
    rows: pa.RecordBatch

    @property
    def last(self) -> int:
        return self.first + int(self.rows.num_rows) - 1


def label_schema(task: Task) -> pa.Schema:
    """Return the columns of a label: the event times from and to, both included; the class index or
    a value a target; when the device was told, by its clock; by whom; and of which event it is, if
    of one alone."""
    return pa.schema(
        [
            pa.field("from", TIMESTAMP, nullable=False),
            pa.field("to", TIMESTAMP, nullable=False),
            pa.field("label", pa.list_(pa.float32(), task.label_size), nullable=False),
            pa.field("told", TIMESTAMP, nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("event_epoch", pa.string()),
            pa.field("event_seq", pa.int64()),
        ]
    )


def encode_label_rows(task: Task, rows: list[dict[str, object]]) -> bytes:
    """Encode rows with the names of `label_schema`; times are microseconds."""
    return encode_batch(pa.RecordBatch.from_pylist(rows, label_schema(task)))


def decode_label_rows(task: Task, data: bytes, count: int) -> pa.RecordBatch:
    """Decode and check the `count` rows of a message; raise MalformedRecord."""
    rows = decode_batch(data, label_schema(task))
    if rows.num_rows != count:
        raise MalformedRecord("wrong-seq", f"{rows.num_rows} labels, not {count}")
    begin, end, told = (times_us(rows.column(name)) for name in ("from", "to", "told"))
    if ((begin < 0) | (end < begin) | (end > LAST_US) | (told < 0) | (told > LAST_US)).any():
        raise MalformedRecord("bad-time", "a label is before 1970, after 3100, or ends first")
    events = zip(
        *(rows.column(name).to_pylist() for name in ("event_epoch", "event_seq")), strict=True
    )
    if any((epoch is None) != (seq is None) or (seq or 0) < 0 for epoch, seq in events):
        raise MalformedRecord("bad-label", "event_epoch and event_seq name no event")
    values = float_rows(rows.column("label"), task.label_size)
    if not np.isfinite(values).all():
        raise MalformedRecord("not-finite", "a label is NaN or infinite")
    if task.classes and ((values < 0) | (values >= task.outputs) | (values % 1 != 0)).any():
        raise MalformedRecord("bad-label", f"a label is not a class index 0..{task.outputs - 1}")
    if not set(rows.column("source").unique().to_pylist()) <= {*LABEL_SOURCES}:
        raise MalformedRecord("bad-label", f"a source is not one of {', '.join(LABEL_SOURCES)}")
    return rows
