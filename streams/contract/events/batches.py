"""Arrow record batches as bytes, and their columns as numpy arrays.

Columns from other producers are taken as they come where nothing is lost.
"""

import numpy as np
import pyarrow as pa

from streams.contract.errors import MalformedRecord

TIMESTAMP = pa.timestamp("us", tz="UTC")
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of an IPC stream


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


def encode_batch(batch: pa.RecordBatch) -> bytes:
    """Encode one batch as an Arrow IPC stream."""
    return b"".join((batch.schema.serialize(), batch.serialize(), END))


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
