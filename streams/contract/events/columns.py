"""Columns from other producers: taken as they come where nothing is lost."""

import numpy as np
import pyarrow as pa

from streams.contract.errors import MalformedRecord


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
