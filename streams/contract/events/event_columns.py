"""Consecutive events as arrays: what the worker keeps of a message until its windows are scored.

An EventBatch has the same as Arrow rows, whose columns and slices cost more than a message of a few
rows is worth.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from streams.contract.events.batches import filled_rows, float_rows, times_us
from streams.contract.events.compact import Columns, Layout, batch_of, layout_of


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
        first, times, models, outputs, labels, known, segments = self.columns
        columns = Columns(
            first + begin,
            times[begin:end],
            models if isinstance(models, str) else models[begin:end],
            outputs[begin:end],
            labels[begin:end],
            known[begin:end],
            None if segments is None else segments[begin:end],
        )
        return replace(self, columns=columns)


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
