"""Arrow record batches as bytes, and their columns as numpy arrays."""

import numpy as np
import pyarrow as pa

from streams.contract.errors import MalformedRecord
from streams.contract.events.columns import align, check

TIMESTAMP = pa.timestamp("us", tz="UTC")
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of an IPC stream


def encode_batch(batch: pa.RecordBatch) -> bytes:
    """Encode one batch as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


class BatchEncoder:
    """Encodes many batches with the same columns: `encode_batch` with the schema written once."""

    def __init__(self, schema: pa.Schema) -> None:
        self._head = bytes(schema.serialize())

    def encode(self, batch: pa.RecordBatch) -> bytes:
        return b"".join((self._head, batch.serialize(), END))


def decode_batch(data: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows of an Arrow IPC stream as one batch with this schema.

    The order of columns, nullability, several batches, and lists whose length is not part of their
    type are accepted: nothing is lost. Values are fully validated, because offsets and lengths from
    the network are untrusted.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
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
        raise MalformedRecord("not-arrow", str(exc).splitlines()[0][:200]) from exc
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
