"""Arrow record batches as bytes, and events as arrays.

Columns from other producers are taken as they come where nothing is lost.

EventColumns are consecutive events as arrays: what the worker keeps of a message until its windows
are scored. An EventBatch has the same as Arrow rows, whose columns and slices cost more than a
message of a few rows is worth.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa
from msgspec import ValidationError, convert

from streams.contract.errors import MalformedRecord, line_of
from streams.contract.events.compact import Columns, Layout
from streams.contract.events.json_items import Text

TIMESTAMP = pa.timestamp("us", tz="UTC")
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of an IPC stream


def fields_of(kinds: Mapping[str, pa.DataType], optional: Collection[str] = ()) -> pa.Schema:
    """Return columns of these types, of which only the optional ones have nulls."""
    named = kinds.items()
    return pa.schema([pa.field(name, kind, nullable=name in optional) for name, kind in named])


def align(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows of all batches, whose columns have been checked, with those of `schema`."""
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    parts = [
        pa.RecordBatch.from_arrays(
            [_column(batch.column(field.name), field) for field in nullable], schema=nullable
        )
        for batch in batches
    ]
    rows = pa.concat_batches(parts) if parts else pa.RecordBatch.from_pylist([], nullable)
    nulls = any(rows.column(f.name).null_count for f in schema if not f.nullable)
    return rows if nulls else pa.RecordBatch.from_arrays(rows.columns, schema=schema)


def _column(found: pa.Array, field: pa.Field) -> pa.Array:
    """Return the column as `field` has it.

    Lists become lists of a fixed size in numpy: Arrow's own cast dies of a segmentation fault on
    lists that are all null (pyarrow 26).
    """
    if found.type.equals(field.type):
        return found
    if pa.types.is_null(found.type):  # what pandas and pyarrow make of a column without a value
        return pa.nulls(len(found), field.type)
    size, flat = field.type.list_size, found.flatten()
    valid = found.is_valid().to_numpy(zero_copy_only=False)
    lengths = found.value_lengths().to_numpy(zero_copy_only=False)[valid]
    if (lengths != size).any():
        wrong = int(lengths[lengths != size][0])
        detail = f"column {field.name} has a list of {wrong} values, not {size}"
        raise MalformedRecord("wrong-schema", detail)
    if flat.null_count:
        raise MalformedRecord("null", f"column {field.name} has nulls in its lists")
    values = np.zeros((len(found), size), field.type.value_type.to_pandas_dtype())
    values[valid] = flat.to_numpy(zero_copy_only=False).reshape(-1, size)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1), field.type.value_type), type=field.type, mask=pa.array(~valid)
    )


def check(found: pa.Schema, expected: pa.Schema) -> None:
    """Raise MalformedRecord unless the columns can be taken as `expected` without a loss."""
    missing = [name for name in expected.names if name not in found.names]
    unknown = [name for name in found.names if name not in expected.names]
    if missing or unknown or len(found.names) != len(expected.names):
        parts = [f"columns are missing: {', '.join(missing)}"] if missing else []
        parts += [f"columns are unknown: {', '.join(unknown)}"] if unknown else []
        raise MalformedRecord("wrong-schema", "; ".join(parts or ["a column occurs twice"])[:200])
    for field in expected:
        have, want = found.field(field.name).type, field.type
        nothing = pa.types.is_null(have) and field.nullable
        if have.equals(want) or _is_list_of(have, want) or nothing:
            continue
        raise MalformedRecord("wrong-schema", f"column {field.name} is {have}, not {want}")


def _is_list_of(have: pa.DataType, want: pa.DataType) -> bool:
    """Whether `have` is a list of the values of the fixed-size list `want`."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not pa.types.is_fixed_size_list(want) or not any(is_list(have) for is_list in lists):
        return False
    if pa.types.is_fixed_size_list(have) and have.list_size != want.list_size:
        return False
    return bool(have.value_type.equals(want.value_type))


def encode_batch(batch: pa.RecordBatch, head: pa.Buffer | None = None) -> bytes:
    """Encode one batch as an Arrow IPC stream; head: its schema serialized, where it is known."""
    return b"".join((head or batch.schema.serialize(), batch.serialize(), END))


def decode_batch(data: bytes, schema: pa.Schema, extra: pa.Field | None = None) -> pa.RecordBatch:
    """Return the rows of an Arrow IPC stream as one batch with this schema, and behind its columns
    the `extra` one where there is one.

    The order of columns, nullability, several batches, and lists whose length is not part of their
    type are accepted: nothing is lost. Values are fully validated, because offsets and lengths from
    the network are untrusted.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            if extra is not None and extra.name in reader.schema.names:
                schema = schema.append(extra)
            if not reader.schema.equals(schema):
                check(reader.schema, schema)
            batches = list(reader)
        for found in batches:
            found.validate(full=True)
        if len(batches) == 1 and batches[0].schema.equals(schema):
            batch = batches[0]
        else:
            batch = align(batches, schema)
    except (pa.ArrowException, OSError, ValueError) as exc:
        raise MalformedRecord("not-arrow", line_of(exc)[:200]) from exc
    for field in schema:
        if not field.nullable and batch.column(field.name).null_count:
            raise MalformedRecord("null", f"column {field.name} has nulls")
    return batch


def float_rows(column: pa.Array, width: int) -> np.ndarray:
    """Return a list column without nulls as (rows, width), without a copy where possible."""
    if isinstance(column, pa.FixedSizeListArray):  # `flatten` would copy a slice
        values = column.values.to_numpy(zero_copy_only=False)
        begin = column.offset * width
        return np.asarray(values[begin : begin + len(column) * width].reshape(-1, width))
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), width)


def filled_rows(column: pa.Array, width: int) -> np.ndarray:
    """Return (rows, width) float32 of a list column; zeros where a row is null or empty."""
    found = np.zeros((len(column), width), np.float32)
    held = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False) == width
    if held.any():
        found[held] = float_rows(column.filter(pa.array(held)), width)
    return found


def times_us(column: pa.Array) -> np.ndarray:
    """Return a timestamp column as int64 microseconds."""
    return np.asarray(column.view(pa.int64()).to_numpy())


# --- events as arrays -----------------------------------------------------------------------------

NAMES = ["seq", "time", "model", "outputs", "label", "segment"]
EVENT_ID = pa.field("event_id", pa.string())


@dataclass(slots=True, eq=False)
class EventColumns:
    """Consecutive events of one device and epoch; not to be changed. ids: the producer's names of
    events."""

    device: str
    epoch: str
    layout: Layout
    columns: Columns
    ids: Sequence[str | None] | None = None

    @property
    def first(self) -> int:
        return self.columns.first

    @property
    def count(self) -> int:
        return len(self.columns.times)

    @property
    def last(self) -> int:
        return self.columns.first + len(self.columns.times) - 1

    @property
    def rows(self) -> pa.RecordBatch:
        """The events as an EventBatch has them, made anew at each call."""
        rows = batch_of(self.layout, self.columns)
        if self.ids is None:
            return rows
        return rows.append_column(EVENT_ID, pa.array(self.ids, EVENT_ID.type))

    def part(self, begin: int, end: int) -> "EventColumns":
        """Return the rows from `begin` to before `end`, which share the memory."""
        if begin == 0 and end == self.count:
            return self
        ids = None if self.ids is None else self.ids[begin:end]
        return replace(self, columns=self.columns.part(begin, end), ids=ids)


def columns_of(device: str, epoch: str, first: int, rows: pa.RecordBatch) -> EventColumns:
    """Return rows of an `event_schema`, which start with the seq `first`, as columns; raise
    MalformedRecord for an impossible name of an event."""
    ids = None
    if EVENT_ID.name in rows.schema.names:
        try:
            ids = convert(rows.column(EVENT_ID.name).to_pylist(), list[Text | None])
        except ValidationError as exc:
            raise MalformedRecord("bad-id", f"event_id: {exc}"[:200]) from exc
        rows = rows.select(NAMES)
    layout = layout_of(rows.schema)
    if layout is None:
        raise ValueError(f"not the columns of events: {rows.schema.names}")
    models, labels = rows.column("model").to_pylist(), rows.column("label")
    columns = Columns(
        first,
        times_us(rows.column("time")),
        models[0] if len(set(models)) == 1 else models,
        float_rows(rows.column("outputs"), layout.outputs),
        filled_rows(labels, layout.label),
        np.asarray(labels.is_valid().to_numpy(zero_copy_only=False)),
        float_rows(rows.column("segment"), layout.segment) if layout.segment else None,
    )
    return EventColumns(device, epoch, layout, columns, ids)


@lru_cache(maxsize=64)
def schema_of(layout: Layout) -> pa.Schema:
    """Return the columns of an event; see records.py:event_schema."""
    segment = _floats(layout.segment) if layout.segment else pa.null()
    kinds = {
        "seq": pa.int64(), "time": TIMESTAMP, "model": pa.string(),
        "outputs": _floats(layout.outputs), "label": _floats(layout.label), "segment": segment,
    }  # fmt: skip
    return fields_of(kinds, optional=("label", "segment"))


@lru_cache(maxsize=64)
def layout_of(schema: pa.Schema) -> Layout | None:
    """Return the layout whose `schema_of` this is; None if there is none."""
    if schema.names != NAMES:
        return None
    outputs, label, segment = (schema.field(name).type for name in NAMES[3:])
    sizes = [int(getattr(kind, "list_size", 0)) for kind in (outputs, label, segment)]
    layout = Layout(sizes[0], sizes[1], sizes[2])
    return layout if schema_of(layout).equals(schema) else None


def _floats(size: int) -> pa.DataType:
    return pa.list_(pa.float32(), size)


def batch_of(layout: Layout, columns: Columns) -> pa.RecordBatch:
    """Return columns as rows."""
    schema = schema_of(layout)
    first, times, models, outputs, labels, known, segments = columns
    n = len(times)
    bits = pa.py_buffer(np.packbits(known, bitorder="little"))
    kind = schema.field("label").type
    arrays = [
        pa.array(np.arange(first, first + n)),
        pa.array(times, type=pa.int64()).view(TIMESTAMP),
        pa.repeat(pa.scalar(models, pa.string()), n)
        if isinstance(models, str)
        else pa.array(models, pa.string()),
        pa.FixedSizeListArray.from_arrays(
            pa.array(outputs.reshape(-1)), type=schema.field("outputs").type
        ),
        pa.Array.from_buffers(kind, n, [bits], children=[pa.array(labels.reshape(-1))]),
        pa.nulls(n, schema.field("segment").type)
        if segments is None
        else pa.FixedSizeListArray.from_arrays(
            pa.array(segments.reshape(-1)), type=schema.field("segment").type
        ),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def all_finite(values: np.ndarray) -> bool:
    """Return whether all numbers are finite; first by their squares' sums, which are quicker, and
    too large for some."""
    rows = values.reshape(len(values), -1)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.vecdot(rows, rows)
    return bool(np.isfinite(sums).all() or np.isfinite(values).all())
