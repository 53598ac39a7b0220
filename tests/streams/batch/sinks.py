"""What is in each sink of a batch job."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi
import duckdb
from deltalake import DeltaTable

TABLES = ("delta", "duckdb", "sqlite", "postgresql")
SUFFIX = {"delta": "out.delta", "duckdb": "out.duckdb", "sqlite": "out.sqlite"}


def rows_in(kind: str, place: Path | str, table: str = "scores") -> list[dict[str, Any]]:
    """All rows in the order of jobs, shards and numbers; outputs as lists."""
    found: list[dict[str, Any]]
    if kind == "delta":
        found = DeltaTable(place).to_pyarrow_table().to_pylist()
    elif kind == "duckdb":
        with closing(duckdb.connect(str(place), read_only=True)) as connection:
            found = connection.sql(f'SELECT * FROM "{table}"').to_arrow_table().to_pylist()
    elif kind == "sqlite":
        with closing(sqlite3.connect(place)) as connection:
            connection.row_factory = sqlite3.Row
            found = [dict(row) for row in connection.execute(f'SELECT * FROM "{table}"')]
        for row in found:
            row["outputs"] = row["outputs"] and json.loads(row["outputs"])
    else:
        with (
            closing(adbc_driver_postgresql.dbapi.connect(str(place))) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(f'SELECT * FROM "{table}"')
            found = cursor.fetch_arrow_table().to_pylist()
    return sorted(found, key=lambda row: (row["job"], row["shard"], row["file"], row["row"]))
