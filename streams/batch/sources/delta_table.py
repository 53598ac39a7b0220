"""The seam to Delta Lake tables as input: the data files of one version, and their partitions."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from streams.batch.records.documents import Constant, Named
from streams.batch.sources.places import is_url
from streams.batch.sources.tables import DELTA_TYPES, MOMENTS
from streams.contract.errors import UsageError

LOG = "_delta_log"
UNREADABLE = {"deletionVectors": "deletion vectors", "columnMapping": "renamed columns"}


def files_of(where: str) -> list[Named]:
    """Return the data files of the newest version, by path; raise UsageError for a table that
    cannot be read file by file."""
    table, failures = _opened(where)
    try:
        features = table.protocol().reader_features or []
        for feature in features:
            if feature in UNREADABLE:
                raise UsageError(
                    f"{where}: a Delta table with {UNREADABLE[feature]} cannot be read: write a "
                    "copy without them"
                )
        kinds = {field.name: field.type for field in table.schema().fields}
        actions = pa.table(table.get_add_actions(flatten=True))
    except failures as exc:
        raise UsageError(f"{where} cannot be read as a Delta table: {_line(exc)}") from exc
    columns = list(table.metadata().partition_columns)
    for name in columns:
        if getattr(kinds[name], "type", None) not in DELTA_TYPES:
            raise UsageError(f"{where}: partition column {name!r} has a type that is not read")
    found = []
    for row in actions.to_pylist():
        inside = unquote(row["path"])
        path = f"{where.rstrip('/')}/{inside}" if is_url(where) else _whole(where, inside)
        values = [(name, kinds[name].type, row[f"partition.{name}"]) for name in columns]
        constants = [Constant(name=n, type=k, value=_text(k, v)) for n, k, v in values]
        found.append(Named(name=f"{where.rstrip('/')}/{inside}", path=path, constants=constants))
    return sorted(found, key=lambda file: file.name)


def columns_of(where: str) -> list[str]:
    """Return the columns of the newest version; raise UsageError if it cannot be read."""
    table, _ = _opened(where)
    return [field.name for field in table.schema().fields]


def _opened(where: str) -> tuple[Any, tuple[type[Exception], ...]]:
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError as exc:
        raise UsageError(f"{where} needs deltalake: pip install 'tidewheel[batch]'") from exc
    failures = (DeltaError, OSError, pa.ArrowException)
    try:
        return DeltaTable(where), failures
    except failures as exc:
        raise UsageError(f"{where} cannot be read as a Delta table: {_line(exc)}") from exc


def _whole(where: str, inside: str) -> str:
    return str((Path(where) / inside).resolve())


def _text(kind: str, value: Any) -> str | None:
    if value is None:
        return None
    if kind in MOMENTS:
        return str(pa.scalar(value, MOMENTS[kind]).cast(pa.int64()).as_py())
    if kind == "boolean":
        return str(value).lower()
    return value.isoformat() if kind == "date" else str(value)


def _line(exc: Exception) -> str:
    """Return what the library says in one line, without its colours and arrows."""
    text = re.sub(r"\x1b\[\d*m|↳", "", str(exc)) or type(exc).__name__
    return " ".join(text.split())[:300]
