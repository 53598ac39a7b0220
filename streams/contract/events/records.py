"""The records on `events` and `scores`: Arrow schemas, headers, and their strict decoding.

`events` carries three kinds of message; the header `schema` tells which. The key is the device.

    events/1   an Arrow IPC stream of one batch: consecutive events of one epoch
    drops/1    no body: the events first..last were dropped, with the reason
    labels/1   true labels that became known later: see labels.py

    header     schema  device  epoch  first  last  reason (drops only)
               task-version (of the task whose events or labels these are; missing: not known)
               again (only on dead letters that were sent again: refused rows are tried again)
               traceparent (only on traced messages: see traceparent.py)

`scores` carries scores/1: an Arrow IPC stream of one batch, the scored events of one window and
revision; the store has the same rows. Times are microseconds, UTC.

`decode_event_message` accepts only what a correct sender could have written, and raises
MalformedRecord for everything else.
"""

import re
from collections.abc import Iterable, Mapping
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
from streams.contract.events.labels import LABELS_1, LabelBatch, decode_label_rows
from streams.contract.task import DEVICE_NAME, Task

EVENTS_1 = "events/1"
DROPS_1 = "drops/1"
SCORES_1 = "scores/1"
SCHEMAS = (EVENTS_1, DROPS_1, LABELS_1)
TASK_VERSION = "task-version"
AGAIN = "again"  # header of a dead letter that is sent to `events` again

MAX_SEQ = 2**62
MAX_ROWS = 100_000
MAX_DROP = 100_000_000  # events in one declaration: more than a device produces in a year
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Headers = list[tuple[str, bytes]]


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


def _floats(size: int, dtype: str = "float32") -> pa.DataType:
    return pa.list_(pa.from_numpy_dtype(dtype), size)


def event_schema(task: Task) -> pa.Schema:
    """Return the columns of an event.

    `segment` is (channels x samples) flattened, channel by channel, of the task's `upload_dtype`;
    if the task uploads predictions only, its Arrow type is null, which takes no space. `label` is
    null without a true label.

    >>> from tidewheel import event_schema, load_task
    >>> event_schema(load_task("streams.tasks.har:task")).names
    ['seq', 'time', 'model', 'outputs', 'label', 'segment']
    """
    channels, samples = task.segment_shape
    whole = _floats(channels * samples, task.upload_dtype)
    return pa.schema(
        [
            pa.field("seq", pa.int64(), nullable=False),
            pa.field("time", TIMESTAMP, nullable=False),
            pa.field("model", pa.string(), nullable=False),
            pa.field("outputs", _floats(task.outputs), nullable=False),
            pa.field("label", _floats(task.label_size)),
            pa.field("segment", whole if task.upload == "segment" else pa.null()),
        ]
    )


def score_schema() -> pa.Schema:
    """Return the columns of a scored event, on `scores` and in the store.

    `window` is the window's start; `revision` counts the window's reports; `commit` numbers the
    store's commits for the event's Kafka partition. If the task uploads predictions only, nothing
    is scored: `teacher` is empty, `teacher_model` is "" and `agrees` is null.
    """
    return pa.schema(
        [
            pa.field("device", pa.string(), nullable=False),
            pa.field("epoch", pa.string(), nullable=False),
            pa.field("seq", pa.int64(), nullable=False),
            pa.field("time", TIMESTAMP, nullable=False),
            pa.field("window", TIMESTAMP, nullable=False),
            pa.field("revision", pa.int32(), nullable=False),
            pa.field("model", pa.string(), nullable=False),
            pa.field("outputs", pa.list_(pa.float32()), nullable=False),
            pa.field("teacher_model", pa.string(), nullable=False),
            pa.field("teacher", pa.list_(pa.float32()), nullable=False),
            pa.field("label", pa.list_(pa.float32())),
            pa.field("agrees", pa.bool_()),
            pa.field("correct", pa.bool_()),
            pa.field("partition", pa.int32(), nullable=False),
            pa.field("commit", pa.int64(), nullable=False),
        ]
    )


def encode_events(batch: EventBatch, version: int | None = None) -> tuple[bytes, bytes, Headers]:
    """Return (key, value, headers) of an events/1 message; `version` is the task's, which workers
    of another version then refuse.

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
    body = encode_batch(batch.rows)
    count = batch.rows.num_rows
    return events_message(batch.device, batch.epoch, batch.first, count, body, version)


def events_message(
    device: str, epoch: str, first: int, count: int, body: bytes, version: int | None = None
) -> tuple[bytes, bytes, Headers]:
    """Return (key, value, headers) of an events/1 message from its encoded body; `version` is the
    task's, None if it is not known."""
    headers = _headers(EVENTS_1, device, epoch, first, first + count - 1, version)
    return device.encode(), body, headers


def encode_drop(drop: Drop) -> tuple[bytes, bytes, Headers]:
    """Return (key, value, headers) of a drops/1 message."""
    headers = _headers(DROPS_1, drop.device, drop.epoch, drop.first, drop.last)
    return drop.device.encode(), b"", [*headers, ("reason", drop.reason.encode())]


def encode_labels(
    device: str, epoch: str, first: int, count: int, body: bytes, version: int | None = None
) -> tuple[bytes, bytes, Headers]:
    """Return (key, value, headers) of a labels/1 message from its encoded body."""
    headers = _headers(LABELS_1, device, epoch, first, first + count - 1, version)
    return device.encode(), body, headers


def _headers(
    schema: str, device: str, epoch: str, first: int, last: int, version: int | None = None
) -> Headers:
    known = [] if version is None else [(TASK_VERSION, str(version).encode())]
    return [
        ("schema", schema.encode()),
        ("device", device.encode()),
        ("epoch", epoch.encode()),
        ("first", str(first).encode()),
        ("last", str(last).encode()),
        *known,
    ]


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
    fields = {name: bytes(text or b"") for name, text in dict(headers).items()}  # may be null
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
    _check_version(task, fields)
    if schema == LABELS_1:
        labels = decode_label_rows(task, value or b"", last - first + 1)
        return LabelBatch(device, epoch, first, labels)
    rows = decode_batch(value or b"", event_schema(task))
    _check_rows(task, rows, first, last)
    return EventBatch(device, epoch, first, rows)


def _check_version(task: Task, fields: Mapping[str, bytes]) -> None:
    """Raise MalformedRecord for rows of another version of the task, which may mean anything."""
    found = _text(fields, TASK_VERSION) if TASK_VERSION in fields else str(task.version)
    if found != str(task.version):
        raise MalformedRecord(
            "task-version", f"of version {found[:20]} of task {task.name}, not {task.version}"
        )


def _check_rows(task: Task, rows: pa.RecordBatch, first: int, last: int) -> None:
    seqs = rows.column("seq").to_numpy()
    if len(seqs) != last - first + 1 or not np.array_equal(seqs, np.arange(first, last + 1)):
        raise MalformedRecord("wrong-seq", f"rows are not exactly the seqs {first}..{last}")
    times = times_us(rows.column("time"))
    if (times < 0).any() or (times > 2**55).any():
        raise MalformedRecord("bad-time", "an event time is before 1970 or after 3100")
    for model in rows.column("model").unique().to_pylist():
        if not MODEL_NAME.fullmatch(model):
            raise MalformedRecord("bad-model", f"not a name of a model version: {model[:40]!r}")
    for name in ("outputs", "label", "segment"):
        column = rows.column(name)
        if pa.types.is_null(column.type):
            continue
        whole = column.null_count == 0
        values = float_rows(column, column.type.list_size) if whole else _known(column)
        if not np.isfinite(values).all():
            raise MalformedRecord("not-finite", f"column {name} has NaN or infinite values")
    labels = _known(rows.column("label"))
    if task.classes and ((labels < 0) | (labels >= task.outputs) | (labels % 1 != 0)).any():
        raise MalformedRecord("bad-label", f"a label is not a class index 0..{task.outputs - 1}")
    if task.upload == "segment" and rows.column("segment").null_count:
        raise MalformedRecord("no-segment", "an event lacks its segment, which the teacher needs")


def _known(column: pa.Array) -> np.ndarray:
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False))


def _text(fields: Mapping[str, bytes], name: str) -> str:
    try:
        return fields[name].decode()
    except KeyError:
        raise MalformedRecord("no-header", f"header {name} is missing") from None
    except UnicodeDecodeError as exc:
        raise MalformedRecord("bad-header", f"header {name} is not UTF-8") from exc


def _number(fields: Mapping[str, bytes], name: str) -> int:
    text = _text(fields, name)
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > MAX_SEQ:
        raise MalformedRecord(
            "bad-header", f"header {name} is not a sequence number: {text[:40]!r}"
        )
    return int(text)


def event_rows(
    task: Task,
    *,
    first: int,
    times: np.ndarray,
    model: str | list[str],
    outputs: np.ndarray,
    labels: list[np.ndarray | None],
    segments: np.ndarray | None,
) -> pa.RecordBatch:
    """Build the rows of an EventBatch.

    times (n,) int64 us; outputs (n, outputs); labels (label_size,) or None each; segments
    (n, channels, samples), None if the task uploads predictions only. For float16 values are
    clipped to +-65,504, because infinite ones would be refused.
    """
    n = len(times)
    schema = event_schema(task)
    columns = [
        pa.array(np.arange(first, first + n)),
        pa.array(times, type=pa.int64()).view(TIMESTAMP),
        pa.array([model] * n if isinstance(model, str) else model, pa.string()),
        pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(outputs, np.float32).reshape(-1)), task.outputs
        ),
        _labels(labels, task.label_size),
        pa.nulls(n, schema.field("segment").type)
        if segments is None
        else pa.FixedSizeListArray.from_arrays(
            pa.array(_uploaded(segments, task.upload_dtype)), segments[0].size if n else 1
        ),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _labels(labels: list[np.ndarray | None], size: int) -> pa.Array:
    """Return the label column; avoids Arrow's compute functions, which cost a device 9 MB."""
    values = np.zeros((len(labels), size), np.float32)
    known = np.zeros(len(labels), bool)
    for i, label in enumerate(labels):
        if label is not None:
            values[i], known[i] = label, True
    bits = pa.py_buffer(np.packbits(known, bitorder="little"))
    return pa.Array.from_buffers(
        _floats(size), len(labels), [bits], children=[pa.array(values.reshape(-1))]
    )


def _uploaded(segments: np.ndarray, dtype: str) -> np.ndarray:
    """Return the segments, flattened, in the upload type."""
    if dtype == "float16":
        most = np.finfo(np.float16).max
        segments = np.clip(segments, -most, most)
    return np.ascontiguousarray(segments, dtype).reshape(-1)
