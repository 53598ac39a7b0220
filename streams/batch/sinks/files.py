"""The output file of a shard, replaced as a whole: Parquet, JSON Lines, CSV, Bedrock's lines.

Where the output is no local folder it is in the job's folder, from which the rows are loaded; for a
database as Parquet.
"""

import base64
import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streams.batch.records.rows import Rows, line_of
from streams.batch.records.specification import FILES, OutputFormat, Plan, Specification
from streams.contract.errors import TidewheelError
from streams.runtime.disk import replacing

MANIFEST = "_manifest.json"


Write = Callable[[pa.Table, Rows], object]  # with the columns that the rows carry over
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
def writing(path: Path, kind: OutputFormat, schema: pa.Schema) -> Iterator[Write]:
    """Replace the file `path`; `schema` has the carried columns as well."""
    with replacing(path) as file:
        if kind == "csv":
            file.write(_csv([schema.names]))
            yield lambda table, rows: file.write(
                _csv([_cell(value) for value in row.values()] for row in _objects(table, rows))
            )
        elif kind in FILES and kind != "parquet":
            shape = _bedrock if kind == "bedrock" else dict
            yield lambda table, rows: file.writelines(
                _json(shape(row)) + b"\n" for row in _objects(table, rows)
            )
        else:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                yield lambda table, rows: writer.write_table(
                    pa.table([*table.columns, *map(_arrow, rows.kept.values())], schema=schema)
                )


def _objects(table: pa.Table, rows: Rows) -> Iterator[dict[str, Any]]:
    """Yield rows with the columns that they carry over, as JSON has them."""
    kept = {name: _values(name, values) for name, values in rows.kept.items()}
    for i, row in enumerate(table.to_pylist()):
        yield {**row, **{name: values[i] for name, values in kept.items()}}


def _bedrock(row: dict[str, Any]) -> dict[str, Any]:
    """Return a record as it came, with `modelOutput` or `error`."""
    given = row.pop("modelInput")
    found = {"recordId": row["id"], "modelInput": given}
    if row["error"] is None:
        left_out = ("id", "file", "row", "error", "reason")
        return {**found, "modelOutput": {n: v for n, v in row.items() if n not in left_out}}
    message = f"{row['error']}: {row['reason']}"
    return {**found, "error": {"errorCode": ERROR_CODE, "errorMessage": message}}


def _json(found: dict[str, Any]) -> bytes:
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()


def _csv(rows: Iterable[list[Any]]) -> bytes:
    """Lists and other nested values are JSON text; null is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


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
        text = f"column {name!r} cannot be written as JSON: {line_of(exc)}"
        raise TidewheelError(text) from exc


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
