"""Which rows are scored: a DuckDB expression, and a range of event time.

A row on which the expression cannot be evaluated, or that has no event time, is not left out: it
has a problem. As in SQL, an expression that is null excludes its row.
"""

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from streams.batch.rows import RowProblem
from streams.batch.specification import Columns, Typed
from streams.contract.errors import UsageError, line_of

TYPES = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "text": pa.string(),
}
PARSED: dict[str, Callable[[str], Any]] = {  # the narrowest first
    "boolean": {"true": True, "false": False}.__getitem__,
    "integer": lambda text: pa.scalar(int(text), pa.int64()).as_py(),
    "number": float,
}


def moment_us(text: str) -> int:
    """Return an ISO 8601 date or time in microseconds since 1970; without an offset it is UTC.
    Raise ValueError for another text."""
    found = datetime.fromisoformat(text)
    found = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    return (found - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def check_where(expression: str, schema: pa.Schema, name: str) -> None:
    """Raise UsageError if an expression does not fit the columns of a file."""
    try:
        seen = schema.empty_table() if len(schema) else pa.table({"_": pa.nulls(0)})
        _run(f"({expression})::BOOLEAN", seen)
    except _duckdb().Error as exc:
        raise UsageError(f"--where {expression}: {line_of(exc)} ({name})") from exc


def used_columns(expression: str, names: Sequence[str]) -> list[str]:
    """Return the columns that an expression may name; case does not matter, as in DuckDB."""
    words = re.sub(r"'[^']*'", "", expression)
    return [
        name
        for name in names
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", words, re.IGNORECASE)
    ]


def kinds_of(names: Sequence[str], seen: Sequence[dict[str, Any]], *, texts: bool) -> list[Typed]:
    """Return the columns of a text format with the kind that fits all values seen; `texts`: the
    format writes numbers as text."""
    found = []
    for name in names:
        values = [row[name] for row in seen if row.get(name) is not None]
        kinds = PARSED if values and (texts or not any(isinstance(v, str) for v in values)) else ()
        fits = (k for k in kinds if all(_as_kind(value, k) is not None for value in values))
        found.append(Typed(name=name, kind=next(fits, "text")))  # type: ignore[arg-type]
    return found


def select(
    columns: Columns, table: pa.Table | pa.RecordBatch, problems: dict[int, RowProblem]
) -> np.ndarray:
    """Return which rows are scored, (n,) bool; adds to `problems` by row, and those are scored."""
    chosen = np.ones(table.num_rows, bool)
    if columns.dated:
        times = times_of(table.column(columns.time), problems)
        chosen &= (times >= columns.from_us) & (times < columns.to_us)
    if columns.where is not None:
        names = [column.name for column in columns.typed]
        seen = {name: table.column(name) for name in names} or {"_": pa.nulls(table.num_rows)}
        chosen &= _where(columns.where, pa.table(seen), problems)
    chosen[list(problems)] = True
    return chosen


def left_of(chosen: np.ndarray, problems: dict[int, RowProblem]) -> dict[int, RowProblem | None]:
    """Return the rows of which no segment is scored, as Rows has them: those that are not chosen,
    and those on which the expression cannot be evaluated."""
    return {**dict.fromkeys(np.flatnonzero(~chosen).tolist()), **problems}


def typed_table(
    columns: Columns, found: Sequence[dict[str, Any]], problems: dict[int, RowProblem]
) -> pa.Table:
    """Return the columns by which objects of a text format are selected."""
    typed: dict[str, pa.Array] = {}
    for column in columns.typed:
        values: list[Any] = []
        for i, row in enumerate(found):
            value = row.get(column.name)
            fitting = None if value is None else _as_kind(value, column.kind)
            if fitting is None and value is not None:
                text = f"{column.name!r} is {value!r:.80}, --where sees a column of {column.kind}s"
                problems.setdefault(i, RowProblem("bad-where", text))
            values.append(fitting)
        typed[column.name] = pa.array(values, TYPES[column.kind])
    if columns.time is not None and columns.time not in typed:
        times = [_text_time(row.get(columns.time)) for row in found]
        typed[columns.time] = pa.array(times, pa.int64())
    return pa.table(typed) if typed else pa.table({"_": pa.nulls(len(found))})


def _text_time(value: Any) -> int | None:
    """Return microseconds of an ISO text or a whole number, None for anything else."""
    if isinstance(value, str):
        text = value.strip('"')
        try:
            return moment_us(text) if not text.strip().lstrip("-").isdigit() else int(text)
        except (ValueError, OverflowError):
            return None
    return value if type(value) is int and abs(value) < 2**62 else None


def times_of(array: pa.Array, problems: dict[int, RowProblem]) -> np.ndarray:
    """Return event times in microseconds, also of text and JSON text; a problem for a row that has
    none."""
    kind, values = array.type, array
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        values = array.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    elif not pa.types.is_integer(kind):
        values = pa.array([_text_time(value) for value in array.to_pylist()], pa.int64())
    missing = np.asarray(values.is_null()).astype(bool)
    for i in np.flatnonzero(missing).tolist():
        problems.setdefault(i, RowProblem("bad-time", "no event time: a timestamp, ISO text or "
                                          "microseconds since 1970"))  # fmt: skip
    return np.asarray(values.fill_null(0).to_numpy(zero_copy_only=False), np.int64)


def _where(expression: str, whole: pa.Table, problems: dict[int, RowProblem]) -> np.ndarray:
    if not whole.num_rows:
        return np.ones(0, bool)
    try:
        return _run(f"coalesce(({expression})::BOOLEAN, false)", whole)
    except _duckdb().Error:
        chosen = _run(f"coalesce(TRY(({expression})::BOOLEAN), false)", whole)
    for i in np.flatnonzero(~chosen).tolist():  # false, null, or cannot be evaluated
        try:
            _run(f"({expression})::BOOLEAN", whole.slice(i, 1))
        except _duckdb().Error as exc:
            problems.setdefault(i, RowProblem("bad-where", line_of(exc)))
    return chosen


def _run(expression: str, rows: pa.Table) -> np.ndarray:
    connection = _connection()
    connection.register("rows", rows)
    try:
        query = f"SELECT {expression} AS chosen FROM rows"
        found = connection.sql(query).to_arrow_table().column("chosen")
    finally:
        connection.unregister("rows")
    chosen = found.fill_null(False).to_numpy(zero_copy_only=False)
    return np.asarray(chosen, bool)


@cache
def _connection() -> Any:
    return _duckdb().connect(":memory:", config={"threads": 1, "enable_external_access": False})


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError as exc:
        raise UsageError("--where needs DuckDB: pip install 'tidewheel[batch]'") from exc
    return duckdb


def _as_kind(value: Any, kind: str) -> Any:
    """Return a value of a text format as one of a kind, None if it is none."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        return text if kind == "text" else PARSED[kind](text.strip().lower())
    except (ValueError, KeyError, OverflowError, pa.ArrowException):
        return None
