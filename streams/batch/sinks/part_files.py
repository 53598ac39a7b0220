"""The output file of a shard, replaced as a whole: Parquet, JSON Lines, CSV, Bedrock's lines.

Where the output is no local folder it is in the job's folder, from which the rows are loaded; for a
database or a topic as Parquet.
"""

import base64
import csv
import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from streams.batch.records.documents import FILES, OutputFormat, Plan, Specification
from streams.batch.records.rows import Rows
from streams.contract.errors import TidewheelError
from streams.runtime.disk import replacing

MANIFEST = "_manifest.json"


class Writer(Protocol):
    """Writes tables, and the columns that their rows carry over."""

    def write(self, table: pa.Table, rows: Rows) -> None: ...


BEDROCK_MANIFEST = "manifest.json.out"
ERROR_CODE = 400  # Bedrock's, of a record that cannot be answered


def part_path(folder: Path, specification: Specification, plan: Plan, shard: int) -> Path:
    """Return the output file of a shard; `folder` is the job's."""
    kind = specification.output_format
    name = f"part-{shard:05}.{kind if kind in FILES else 'parquet'}"
    if kind == "bedrock":
        stem = PurePosixPath(plan.files[plan.shards[shard].file].name).stem
        name = f"{stem}.jsonl.out"
    return (Path(specification.output) if specification.in_files else folder / "staged") / name


@contextmanager
def writing(path: Path, kind: OutputFormat, schema: pa.Schema) -> Iterator[Writer]:
    """Replace the file `path`; `schema` has the carried columns as well."""
    with replacing(path) as file:
        if kind == "jsonl":
            yield _Lines(file)
        elif kind == "bedrock":
            yield _BedrockLines(file)
        elif kind == "csv":
            yield _Csv(file, schema)
        else:
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


class _Csv:
    """Lists and other nested values are JSON text; null is an empty cell."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        self._file = file
        self._write([schema.names])

    def write(self, table: pa.Table, rows: Rows) -> None:
        kept = [_values(name, values) for name, values in rows.kept.items()]
        columns = [*(column.to_pylist() for column in table.columns), *kept]
        self._write([[_cell(value) for value in row] for row in zip(*columns, strict=True)])

    def _write(self, rows: list[list[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._file.write(text.getvalue().encode())


class _BedrockLines:
    """Each record as it came, with `modelOutput` or `error`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, table: pa.Table, rows: Rows) -> None:
        inputs = rows.kept["modelInput"]
        for row, given in zip(table.to_pylist(), inputs, strict=True):
            found: dict[str, Any] = {"recordId": row["id"], "modelInput": plain(given)}
            if row["error"] is None:
                left_out = ("id", "file", "row", "error", "reason")
                found["modelOutput"] = {n: v for n, v in row.items() if n not in left_out}
            else:
                message = f"{row['error']}: {row['reason']}"
                found["error"] = {"errorCode": ERROR_CODE, "errorMessage": message}
            line = json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            self._file.write(line.encode() + b"\n")


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(value, ensure_ascii=False)


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
