"""The seam to a DuckDB database as output: a transaction a shard, with its row of the ledger."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from streams.batch.sinks.loading import loaded_schema, reader_of, refuse_columns
from streams.batch.sinks.sql import (
    count_sql,
    forget_sql,
    identifier,
    known_sql,
    ledger_sql,
    note_sql,
)
from streams.contract.errors import Retryable, TidewheelError


class DuckDbSink:
    """A table in a database file, which is open only while something is done: readers of others
    are kept out no longer than that."""

    def __init__(self, place: str, table: str, job: str) -> None:
        self._place, self._table, self._job = place, table, job

    def check(self, schema: pa.Schema) -> None:
        if not Path(self._place).exists():
            return
        with self._open(read_only=True) as connection:
            found = self._columns(connection)
        if found:
            refuse_columns(
                f"table {self._table} of {self._place}", found, loaded_schema(schema, duckdb_type)
            )

    def prepare(self, schema: pa.Schema) -> None:
        Path(self._place).parent.mkdir(parents=True, exist_ok=True)
        rows = loaded_schema(schema, duckdb_type).empty_table()
        with self._open() as connection:
            connection.register("rows", rows)
            connection.execute("BEGIN")
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {identifier(self._table)} AS SELECT * FROM rows"
            )
            connection.execute(ledger_sql())
            connection.execute("COMMIT")

    def committed(self, shard: int, generation: int) -> bool:
        with self._open() as connection:
            return self._known(connection, shard, generation)

    def load(self, shard: int, generation: int, part: Path) -> None:
        with self._open() as connection:
            connection.execute("BEGIN")
            if self._known(connection, shard, generation):
                return
            if generation > 1:
                connection.execute(forget_sql(self._table), [self._job, shard])
            connection.register("rows", reader_of(part, self._job, shard, duckdb_type))
            connection.execute(f"INSERT INTO {identifier(self._table)} BY NAME SELECT * FROM rows")
            connection.execute(note_sql(), [self._job, shard, generation])
            connection.execute("COMMIT")

    def count(self) -> int | None:
        with self._open() as connection:
            found = connection.execute(count_sql(self._table), [self._job]).fetchall()
        return int(found[0][0])

    def _known(self, connection: Any, shard: int, generation: int) -> bool:
        found = connection.execute(known_sql(), [self._job, shard, generation]).fetchall()
        return bool(found[0][0])

    def _columns(self, connection: Any) -> set[str]:
        query = "SELECT column_name FROM duckdb_columns() WHERE table_name = ?"
        return {name for (name,) in connection.execute(query, [self._table]).fetchall()}

    @contextmanager
    def _open(self, *, read_only: bool = False) -> Iterator[Any]:
        try:
            connection = duckdb.connect(self._place, read_only=read_only)
        except duckdb.IOException as exc:
            text = str(exc).splitlines()[0][:200]
            kind = Retryable if "lock" in text.lower() else TidewheelError
            raise kind(f"the database {self._place} cannot be opened: {text}") from exc
        except duckdb.Error as exc:
            raise self._failed(exc) from exc
        try:
            yield connection
        except duckdb.Error as exc:
            raise self._failed(exc) from exc
        finally:
            connection.close()

    def _failed(self, exc: Exception) -> TidewheelError:
        text = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
        return TidewheelError(f"the database {self._place} cannot be used: {text}")


def duckdb_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type as DuckDB reads it from Arrow."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return pa.float32() if pa.types.is_float16(kind) else kind
