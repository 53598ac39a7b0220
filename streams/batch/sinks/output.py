"""The output file of a shard: Parquet or JSON Lines, replaced as a whole."""

import base64
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from streams.batch.records.documents import OutputFormat
from streams.batch.records.rows import Rows
from streams.contract.errors import TidewheelError
from streams.runtime.disk import replacing

MANIFEST = "_manifest.json"


class Writer(Protocol):
    """Writes tables, and the columns that their rows carry over."""

    def write(self, table: pa.Table, rows: Rows) -> None: ...


def part_name(shard: int, kind: OutputFormat) -> str:
    return f"part-{shard:05}.{kind}"


@contextmanager
def writing(path: Path, kind: OutputFormat, schema: pa.Schema) -> Iterator[Writer]:
    """Replace the file `path`; `schema` has the carried columns as well."""
    with replacing(path) as file:
        if kind == "jsonl":
            yield _Lines(file)
            return
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            yield _Parquet(writer, schema)


class _Parquet:
    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._writer, self._schema = writer, schema

    def write(self, table: pa.Table, rows: Rows) -> None:
        kept = [_arrow(values) for values in rows.kept.values()]
        whole = pa.table([*table.columns, *kept], schema=self._schema)
        self._writer.write_table(whole)


class _Lines:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, table: pa.Table, rows: Rows) -> None:
        kept = {name: _values(name, values) for name, values in rows.kept.items()}
        for i, row in enumerate(table.to_pylist()):
            whole = {**row, **{name: values[i] for name, values in kept.items()}}
            line = json.dumps(whole, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            self._file.write(line.encode() + b"\n")


def _arrow(values: Any) -> pa.Array:
    """Return a carried column for Parquet: JSON values become JSON text."""
    if not isinstance(values, list):
        return values
    texts = [None if v is None else json.dumps(plain(v), ensure_ascii=False) for v in values]
    return pa.array(texts, pa.string())


def _values(name: str, values: Any) -> list[Any]:
    """Return a carried column as JSON values; raise TidewheelError if it cannot be one."""
    if isinstance(values, list):
        return [plain(value) for value in values]
    try:
        if pa.types.is_temporal(values.type) and not pa.types.is_duration(values.type):
            values = values.cast(pa.string())  # Python's times have no nanoseconds
        return [plain(value) for value in values.to_pylist()]
    except (ValueError, pa.ArrowException) as exc:
        text = str(exc).splitlines()[0][:200]
        raise TidewheelError(f"column {name!r} cannot be written as JSON: {text}") from exc


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers that JSON lacks, times and bytes become text."""
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
