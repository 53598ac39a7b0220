"""Columns from other producers: taken as they come where nothing is lost."""

import pyarrow as pa

from streams.contract.errors import MalformedRecord


def align(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows of all batches with the columns of `schema`, in its order."""
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    parts = [
        pa.RecordBatch.from_arrays(
            [batch.column(field.name).cast(field.type) for field in nullable], schema=nullable
        )
        for batch in batches
    ]
    rows = pa.concat_batches(parts) if parts else pa.RecordBatch.from_pylist([], nullable)
    nulls = any(rows.column(f.name).null_count for f in schema if not f.nullable)
    return rows if nulls else pa.RecordBatch.from_arrays(rows.columns, schema=schema)


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
        if have.equals(want) or _is_list_of(have, want):
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
