"""Consecutive events as arrays: what the worker keeps of a message until its windows are scored.

An EventBatch has the same as Arrow rows, whose columns and slices cost more than a message of a few
rows is worth.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa

from streams.contract.events.batches import TIMESTAMP, filled_rows, float_rows, times_us
from streams.contract.events.compact import Columns, Layout

NAMES = ["seq", "time", "model", "outputs", "label", "segment"]


@dataclass(slots=True, eq=False)
class EventColumns:
    """Consecutive events of one device and epoch; not to be changed."""

    device: str
    epoch: str
    layout: Layout
    columns: Columns

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
        return batch_of(self.layout, self.columns)

    def part(self, begin: int, end: int) -> "EventColumns":
        """Return the rows from `begin` to before `end`, which share the memory."""
        if begin == 0 and end == self.count:
            return self
        return replace(self, columns=self.columns.part(begin, end))


def columns_of(device: str, epoch: str, first: int, rows: pa.RecordBatch) -> EventColumns:
    """Return rows of an `event_schema`, which start with the seq `first`, as columns."""
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
    return EventColumns(device, epoch, layout, columns)


@lru_cache(maxsize=64)
def schema_of(layout: Layout) -> pa.Schema:
    """Return the columns of an event; see records.py:event_schema."""
    segment = _floats(layout.segment) if layout.segment else pa.null()
    return pa.schema(
        [
            pa.field("seq", pa.int64(), nullable=False),
            pa.field("time", TIMESTAMP, nullable=False),
            pa.field("model", pa.string(), nullable=False),
            pa.field("outputs", _floats(layout.outputs), nullable=False),
            pa.field("label", _floats(layout.label)),
            pa.field("segment", segment),
        ]
    )


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
