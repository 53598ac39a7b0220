"""The records on `events` and `scores`: Arrow schemas, headers, and their strict decoding.

`events` carries four kinds of message beside JSON (json_form.py). The key is the device. What a
device sends of them, without Arrow, is in messages.py. Times are microseconds, UTC.

    events/2   consecutive events of one epoch in few bytes: see compact.py
    events/1   the same as an Arrow IPC stream of one batch
    drops/1    no body: the events first..last were dropped, with the reason
    labels/1   true labels that became known later: see labels.py

    header     e2 (events/2 only: the digest of the columns)
               schema (all but events/2)  device  epoch  first  last  reason (drops only)
               again (only on dead letters that were sent again: refused rows are tried again)
               traceparent (only on traced messages: see streams/runtime/tracing.py)

Devices send events/2; other producers may send either. Only events/1 can have names of events.

`decode_event_message` accepts only what a correct sender could have written, and raises
MalformedRecord for everything else.

`scores` has the scored events of one window and revision, as the store has them: as `scores/1`, an
Arrow IPC stream of one batch, or as `scores/json`, a list of objects with the same fields and times
in RFC 3339. The header `taught` has the teacher's answers for the device, see compact.py.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
import pyarrow as pa

from streams.contract.documents import encoded
from streams.contract.errors import MalformedRecord
from streams.contract.events.batches import (
    EVENT_ID,
    TIMESTAMP,
    EventColumns,
    all_finite,
    columns_of,
    decode_batch,
    encode_batch,
    fields_of,
    layout_of,
    schema_of,
)
from streams.contract.events.compact import MOST, UNANSWERED, Columns, decode_rows, encode_block
from streams.contract.events.labels import LabelBatch, decode_label_lines
from streams.contract.events.messages import (
    DROPS_1,
    EVENTS_1,
    EVENTS_2,
    LABELS_1,
    Drop,
    Wire,
    encode_block_message,
    headers_of,
    task_layout,
)
from streams.contract.task import DEVICE_NAME, Task

SCHEMAS = (EVENTS_1, DROPS_1, LABELS_1)
AGAIN = "again"  # header of a dead letter that is sent again: its offset on `dead-letters`

MAX_SEQ = 2**62
MAX_ROWS = 100_000
MAX_DROP = 100_000_000  # events in one declaration: more than a device produces in a year
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class EventBatch:
    """Consecutive events of one device and epoch; `rows` has the schema of `event_schema`.

    `first` is the seq of the first row, `last` that of the last one. `epoch` names one life of the
    device's spool; seq counts its events from 0 without holes.

    >>> import pyarrow as pa
    >>> from tidewheel import EventBatch, event_schema, load_task
    >>> schema = event_schema(load_task("streams.tasks.har:task"))
    >>> EventBatch("phone-1", "e1", 40, pa.RecordBatch.from_pylist([], schema)).last
    39
    """

    device: str
    epoch: str
    first: int
    rows: pa.RecordBatch

    @property
    def last(self) -> int:
        return self.first + int(self.rows.num_rows) - 1


def event_schema(task: Task) -> pa.Schema:
    """Return the columns of an event.

    `segment` is (channels x samples) flattened, channel by channel;
    if the task uploads predictions only, its Arrow type is null, which takes no space. `label` is
    null without a true label. A further column, `event_id`, may have the producer's event names.

    >>> from tidewheel import event_schema, load_task
    >>> event_schema(load_task("streams.tasks.har:task")).names
    ['seq', 'time', 'model', 'outputs', 'label', 'segment']
    """
    return schema_of(task_layout(task))


def encode_events(batch: EventBatch) -> Wire:
    """Return (key, value, headers) of an events/2 message. Rows that events/2 cannot carry, as
    those with nulls, become an events/1 message.

    >>> import pyarrow as pa
    >>> from tidewheel import EventBatch, decode_events, encode_events, event_schema, load_task
    >>> task = load_task("streams.tasks.har:task")
    >>> row = {
    ...     "seq": 0, "time": 1_760_000_000_000_000, "model": "1-abc", "outputs": [0.0] * 6,
    ...     "label": [2.0], "segment": [0.0] * 6 * 128,
    ... }
    >>> rows = pa.RecordBatch.from_pylist([row], event_schema(task))
    >>> key, value, headers = encode_events(EventBatch("phone-1", "e1", 0, rows))
    >>> decode_events(task, key, value, headers).rows.num_rows
    1
    """
    layout = layout_of(batch.rows.schema)
    if layout is None or not batch.rows.num_rows:
        return encode_stream(batch)
    whole = batch.rows.columns[:4] + (batch.rows.columns[5:] if layout.segment else [])
    if any(column.null_count for column in whole):
        return encode_stream(batch)
    device, epoch, first, rows = batch.device, batch.epoch, batch.first, batch.rows
    columns = columns_of(device, epoch, first, rows).columns
    if any(len(name) > MOST or not name.isascii() for name in {epoch, *columns.names}):
        return encode_stream(batch)
    if not np.array_equal(rows.column("seq").to_numpy(), np.arange(first, batch.last + 1)):
        return encode_stream(batch)
    return encode_block_message(device, epoch, first, encode_block(columns), layout)


def encode_stream(batch: EventBatch) -> Wire:
    """Return (key, value, headers) of an events/1 message."""
    headers = headers_of(EVENTS_1, batch.device, batch.epoch, batch.first, batch.last)
    return batch.device.encode(), encode_batch(batch.rows), headers


def decode_event_message(
    task: Task,
    key: bytes | None,
    value: bytes | None,
    headers: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
) -> EventBatch | Drop | LabelBatch:
    """Decode and fully check a message of `events`; raise MalformedRecord if it is invalid.

    >>> from tidewheel import MalformedRecord, decode_events, load_task
    >>> try:
    ...     decode_events(load_task("streams.tasks.har:task"), b"d0", b"", [])
    ... except MalformedRecord as error:
    ...     print(error.reason)
    no-header
    """
    found = decode_columns(task, key, value, headers)
    if isinstance(found, EventColumns):
        return EventBatch(found.device, found.epoch, found.first, found.rows)
    return found


def decode_columns(
    task: Task,
    key: bytes | None,
    value: bytes | None,
    headers: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
) -> EventColumns | Drop | LabelBatch:
    """Decode and check as `decode_event_message`, with events as columns."""
    fields = {name: bytes(text or b"") for name, text in dict(headers).items()}  # may be null
    if EVENTS_2 in fields and "schema" not in fields:
        return _decode_compact(task, key or b"", value or b"", fields)
    schema = _text(fields, "schema")
    if schema not in SCHEMAS:
        raise MalformedRecord("unknown-schema", f"{schema!r}; expected {' or '.join(SCHEMAS)}")
    device, epoch = _text(fields, "device"), _text(fields, "epoch")
    if not DEVICE_NAME.fullmatch(device) or not DEVICE_NAME.fullmatch(epoch):
        raise MalformedRecord("bad-header", f"device {device!r}, epoch {epoch!r}")
    if key != device.encode():
        raise MalformedRecord("wrong-key", f"key {key!r} and header device {device!r} differ")
    first, last = _number(fields, "first"), _number(fields, "last")
    if last < first:
        raise MalformedRecord("bad-header", f"seq range {first}..{last}")
    if schema == DROPS_1:
        if last - first >= MAX_DROP:
            raise MalformedRecord("huge-drop", f"{last - first + 1} events, at most {MAX_DROP}")
        return Drop(device, epoch, first, last, _text(fields, "reason"))
    if last - first >= MAX_ROWS:
        raise MalformedRecord("huge-batch", f"{last - first + 1} rows, at most {MAX_ROWS}")
    if schema == LABELS_1:
        labels = decode_label_lines(task, value or b"", last - first + 1)
        return LabelBatch(device, epoch, first, labels)
    rows = decode_batch(value or b"", event_schema(task), EVENT_ID)
    if not np.array_equal(rows.column("seq").to_numpy(), np.arange(first, last + 1)):
        raise MalformedRecord("wrong-seq", f"rows are not exactly the seqs {first}..{last}")
    if task.upload == "segment" and rows.column("segment").null_count:
        raise MalformedRecord("no-segment", "an event lacks its segment, which the teacher needs")
    events = columns_of(device, epoch, first, rows)
    _check_values(task, events.columns)
    return events


def _decode_compact(
    task: Task, key: bytes, value: bytes, fields: Mapping[str, bytes]
) -> EventColumns:
    layout, digest = task_layout(task), _text(fields, EVENTS_2)
    if digest != layout.digest:
        mine = f"{layout.digest!r} of task {task.name}"
        raise MalformedRecord("wrong-schema", f"columns {digest[:20]!r}, not {mine}")
    device = key.decode("ascii", errors="replace")
    if not DEVICE_NAME.fullmatch(device):
        raise MalformedRecord("wrong-key", f"key {key[:80]!r} is not a device's name")
    epoch, columns = decode_rows(layout, value, MAX_ROWS)
    last = columns.first + len(columns.times) - 1
    if not DEVICE_NAME.fullmatch(epoch) or last > MAX_SEQ:
        raise MalformedRecord("bad-body", f"epoch {epoch[:80]!r}, last seq {last}")
    _check_values(task, columns)
    return EventColumns(device, epoch, layout, columns)


def _check_values(task: Task, columns: Columns) -> None:
    """Raise MalformedRecord unless an event can have such values."""
    times, outputs, labels = columns.times, columns.outputs, columns.labels[columns.known]
    if times.min() < 0 or times.max() > 2**55:
        raise MalformedRecord("bad-time", "an event time is before 1970 or after 3100")
    models = {columns.models} if isinstance(columns.models, str) else set(columns.models)
    if models == {UNANSWERED} and task.answer_by == "worker":
        models = set()
    for model in models:
        if not MODEL_NAME.fullmatch(model):
            raise MalformedRecord("bad-model", f"not a name of a model version: {model[:40]!r}")
    for name, values in (("outputs", outputs), ("label", labels), ("segment", columns.segments)):
        if values is not None and values.size and not all_finite(values):
            raise MalformedRecord("not-finite", f"column {name} has NaN or infinite values")
    if (
        task.classes
        and labels.size
        and ((labels < 0) | (labels >= task.outputs) | (labels % 1 != 0)).any()
    ):
        raise MalformedRecord("bad-label", f"a label is not a class index 0..{task.outputs - 1}")


def _text(fields: Mapping[str, bytes], name: str) -> str:
    if name not in fields:
        raise MalformedRecord("no-header", f"header {name} is missing")
    try:
        return fields[name].decode()
    except UnicodeDecodeError as exc:
        raise MalformedRecord("bad-header", f"header {name} is not UTF-8") from exc


def _number(fields: Mapping[str, bytes], name: str) -> int:
    text = _text(fields, name)
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > MAX_SEQ:
        raise MalformedRecord(
            "bad-header", f"header {name} is not a sequence number: {text[:40]!r}"
        )
    return int(text)


ScoresForm = Literal["arrow", "json"]
SCORES_1, SCORES_JSON = "scores/1", "scores/json"
SCHEMA_OF: dict[ScoresForm, str] = {"arrow": SCORES_1, "json": SCORES_JSON}
TIMES, FLOATS = ("time", "window"), ("outputs", "teacher", "label")


def score_schema() -> pa.Schema:
    """Return the columns of a scored event, on `scores` and in the store.

    `window` is the window's start; `revision` counts the window's reports; `commit` numbers the
    store's commits for the event's Kafka partition. If the task uploads predictions only, nothing
    is scored: `teacher` is empty, `teacher_model` is "" and `agrees` is null.
    """
    floats = pa.list_(pa.float32())
    kinds = {
        "device": pa.string(), "epoch": pa.string(), "seq": pa.int64(), "event_id": pa.string(),
        "time": TIMESTAMP, "window": TIMESTAMP, "revision": pa.int32(), "model": pa.string(),
        "outputs": floats, "teacher_model": pa.string(), "teacher": floats, "label": floats,
        "agrees": pa.bool_(), "correct": pa.bool_(), "partition": pa.int32(), "commit": pa.int64(),
    }  # fmt: skip
    return fields_of(kinds, optional=("event_id", "label", "agrees", "correct"))


def encode_scores(rows: pa.RecordBatch, form: ScoresForm, head: pa.Buffer | None = None) -> bytes:
    """Return the value of a message with these rows; head: see encode_batch."""
    if form == "arrow":
        return encode_batch(rows, head)
    columns = {name: rows.column(name).to_pylist() for name in rows.schema.names}
    for name in FLOATS:  # as few digits as say which float32 it is
        columns[name] = [None if row is None else _short(row) for row in columns[name]]
    named = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return encoded(named)


def _short(row: list[float]) -> list[float]:
    return [float(text) for text in np.array(row, np.float32).astype(str).tolist()]


def decode_scores(value: bytes | None, headers: Iterable[tuple[str, bytes]]) -> pa.RecordBatch:
    """Return the rows of a message of `scores`; raise MalformedRecord."""
    if dict(headers).get("schema") != SCORES_JSON.encode():
        return decode_batch(value or b"", score_schema())
    try:
        rows = json.loads(value or b"")
        for row in rows:
            row.update({name: datetime.fromisoformat(row[name]) for name in TIMES})
        found = pa.RecordBatch.from_pylist(rows, score_schema())
        found.validate(full=True)
    except (pa.ArrowException, ValueError, TypeError, LookupError, AttributeError) as exc:
        raise MalformedRecord("not-json", f"{type(exc).__name__}: {exc}"[:200]) from exc
    return found
