"""Printing the result of a query."""

import json
import sys
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from rich.console import Console

from compose.reports.terminal import table
from streams.contract.errors import UsageError

SHOWN = 4  # of a vector's numbers
Format = Literal["table", "csv", "json", "parquet"]


def write_result(rows: pa.Table, form: Format, console: Console) -> None:
    """Write rows to standard output as a table for a person, CSV, JSON lines, or Parquet."""
    target = sys.stdout.buffer
    if form == "parquet" and sys.stdout.isatty():
        raise UsageError("--format parquet cannot be shown on a terminal: redirect it to a file")
    if form == "parquet":
        pa.parquet.write_table(rows, target)
    elif form == "csv":
        pa.csv.write_csv(_flat(rows), target)
    elif form == "json":
        target.writelines(json.dumps(row, default=str).encode() + b"\n" for row in rows.to_pylist())
    else:
        columns = ([_cell(x) for x in r.values()] for r in rows.to_pylist())
        console.print(table("", rows.column_names, columns))
    target.flush()


def _flat(rows: pa.Table) -> pa.Table:
    """Return lists and structs as JSON text, because CSV cannot represent them."""
    for i, field in enumerate(rows.schema):
        if pa.types.is_nested(field.type):
            text = [None if x is None else json.dumps(x, default=str) for x in rows[i].to_pylist()]
            rows = rows.set_column(i, field.name, pa.array(text, pa.string()))
    return rows


def row_line(row: dict[str, Any]) -> str:
    """One line of `name=value`; nested values as JSON, vectors shortened."""
    return "  ".join(f"{name}={_cell(value)}" for name, value in row.items())


def _cell(value: object) -> str:
    """A value in a cell: of a vector the first numbers, with three digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return json.dumps(value, default=str)
    if not isinstance(value, list):
        return str(value)
    shown = [f"{x:.3g}" if isinstance(x, float) else str(x) for x in value[:SHOWN]]
    more = [f"… {len(value) - SHOWN} more"] if len(value) > SHOWN else []
    return f"[{', '.join(shown + more)}]"
