"""True labels that became known after the event: the messages labels/1 on `events`.

    header     schema  device  epoch  first  last     (as events have them; see records.py)
    body       a line of JSON, ended by a line feed, for each label:
               {"from": us, "to": us, "label": [...], "told": us, "source": "user" or "outcome",
               "event_epoch": ..., "event_seq": ...}, the last two only for one event alone

A line labels all events of the device between two event times, both included; with `event_epoch`
and `event_seq` that event alone, since several may have one time. Labels have numbers of
their own, first..last, from 0 without holes in an epoch of the device's queue of labels; so a label
that comes twice is known. Of several labels of an event the one that was told last counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa

from streams.contract.documents import Document, EventTime
from streams.contract.errors import MalformedRecord
from streams.contract.events.batches import TIMESTAMP, fields_of
from streams.contract.events.json_items import EXTERNAL, KnownLabel
from streams.contract.task import Task

Seq = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


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
    """Return the columns of a label: the event times from and to, both included, null for an event
    that is named alone; the class index or a value a target; when it was told, by the teller's
    clock; by whom; and of which event it is, if of one alone."""
    kinds = {
        "from": TIMESTAMP, "to": TIMESTAMP, "label": pa.list_(pa.float32(), task.label_size),
        "told": TIMESTAMP, "source": pa.string(), "event_epoch": pa.string(),
        "event_seq": pa.int64(), "event_id": pa.string(),
    }  # fmt: skip
    return fields_of(kinds, optional=("from", "to", "event_epoch", "event_seq", "event_id"))


def label_rows(rows: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return rows of a `label_schema` one by one, with times in microseconds."""
    plain = [pa.int64() if pa.types.is_timestamp(one.type) else one.type for one in rows.schema]
    columns = [column.cast(kind) for column, kind in zip(rows.columns, plain, strict=True)]
    found: list[dict[str, Any]] = pa.table(columns, names=rows.schema.names).to_pylist()
    return found


def known_label_batches(
    task: Task, labels: Sequence[tuple[str, KnownLabel]], epoch: str, first: int, now_us: int
) -> list[LabelBatch]:
    """Return the labels of a message of `labels`, whose numbers are from `first` on in `epoch`."""
    found: list[LabelBatch] = []
    for device, same in groupby(labels, lambda each: each[0]):
        rows = [_known_row(label, now_us) for _, label in same]
        batch = pa.RecordBatch.from_pylist(rows, label_schema(task))
        found.append(LabelBatch(device, epoch, first, batch))
        first += len(rows)
    return found


def _known_row(label: KnownLabel, now_us: int) -> dict[str, object]:
    at_us = label.at_us if label.timed else None
    return {
        "from": at_us,
        "to": at_us,
        "label": label.label,
        "told": label.told_us(now_us),
        "source": EXTERNAL,
        "event_epoch": label.epoch,
        "event_seq": label.seq,
        "event_id": label.event_id,
    }


class _Told(Document):
    from_: EventTime = msgspec.field(name="from")
    to: EventTime
    label: list[float]
    told: EventTime
    source: Literal["user", "outcome"]
    event_epoch: str | None = None
    event_seq: Seq | None = None

    def __post_init__(self) -> None:
        if self.to < self.from_:
            raise ValueError("it ends before it begins")
        if (self.event_epoch is None) != (self.event_seq is None):
            raise ValueError("event_epoch and event_seq name no event")


def decode_label_lines(task: Task, data: bytes, count: int) -> pa.RecordBatch:
    """Decode and check the `count` labels of a message as rows; raise MalformedRecord."""
    lines = data.split(b"\n")
    if len(lines) != count + 1 or lines[-1]:
        raise MalformedRecord("wrong-seq", f"{len(lines) - 1} labels, not {count}")
    rows = [_Told.decode(line).fields() for line in lines[:-1]]
    if not all(_fits(task, row["label"]) for row in rows):
        raise MalformedRecord("bad-label", f"a label is not one of task {task.name}")
    return pa.RecordBatch.from_pylist(rows, label_schema(task))


def _fits(task: Task, label: list[float]) -> bool:
    with np.errstate(over="ignore"):  # it becomes infinite, which fits nothing
        values = np.array(label, np.float32)
    if len(values) != task.label_size or not np.isfinite(values).all():
        return False
    return not task.classes or bool(0 <= values[0] < task.outputs and values[0] % 1 == 0)
