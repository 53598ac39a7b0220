"""A SQLite database as output: a transaction a shard, with its row of the ledger.

Lists and other values that SQLite lacks are JSON text, times ISO 8601 text, booleans 0 and 1.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow as pa

from streams.batch.sinks.loading import batches_of, loaded_schema, refuse_columns
from streams.batch.sinks.sql import (
    count_sql,
    forget_sql,
    identifier,
    known_sql,
    ledger_sql,
    note_sql,
)
from streams.contract.errors import Retryable, TidewheelError

WAIT_S = 30.0  # for another writer
KINDS = {pa.string(): "TEXT", pa.int64(): "INTEGER", pa.float64(): "REAL", pa.binary(): "BLOB"}


class SqliteSink:
    """A table in a database file."""

    def __init__(self, place: str, table: str, job: str) -> None:
        self._place, self._table, self._job = place, table, job

    def check(self, schema: pa.Schema) -> None:
        if not Path(self._place).exists():
            return
        with self._open() as connection:
            query = f"PRAGMA table_info({identifier(self._table)})"
            found = {name for _, name, *_ in connection.execute(query)}
        if found:
            wanted = loaded_schema(schema, sqlite_type)
            refuse_columns(f"table {self._table} of {self._place}", found, wanted)

    def prepare(self, schema: pa.Schema) -> None:
        Path(self._place).parent.mkdir(parents=True, exist_ok=True)
        wanted = loaded_schema(schema, sqlite_type)
        columns = ", ".join(f"{identifier(field.name)} {KINDS[field.type]}" for field in wanted)
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"CREATE TABLE IF NOT EXISTS {identifier(self._table)} ({columns})")
            connection.execute(ledger_sql())
            connection.execute("COMMIT")

    def committed(self, shard: int, generation: int) -> bool:
        with self._open() as connection:
            return self._known(connection, shard, generation)

    def load(self, shard: int, generation: int, part: Path) -> None:
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            if self._known(connection, shard, generation):
                return
            if generation > 1:
                connection.execute(forget_sql(self._table), [self._job, shard])
            for batch in batches_of(part, self._job, shard, sqlite_type):
                names = ", ".join(identifier(name) for name in batch.schema.names)
                places = ", ".join("?" * batch.num_columns)
                connection.executemany(
                    f"INSERT INTO {identifier(self._table)} ({names}) VALUES ({places})",
                    zip(*(column.to_pylist() for column in batch.columns), strict=True),
                )
            connection.execute(note_sql(), [self._job, shard, generation])
            connection.execute("COMMIT")

    def count(self) -> int | None:
        with self._open() as connection:
            (found,) = connection.execute(count_sql(self._table), [self._job]).fetchone()
        return int(found)

    def _known(self, connection: sqlite3.Connection, shard: int, generation: int) -> bool:
        (found,) = connection.execute(known_sql(), [self._job, shard, generation]).fetchone()
        return bool(found)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            # isolation_level None: a transaction begins where we say so
            with closing(
                sqlite3.connect(self._place, timeout=WAIT_S, isolation_level=None)
            ) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                yield connection
        except sqlite3.OperationalError as exc:
            kind = Retryable if "locked" in str(exc) else TidewheelError
            raise kind(f"the database {self._place} cannot be used: {exc}") from exc
        except (sqlite3.Error, OverflowError) as exc:
            raise TidewheelError(f"the database {self._place} cannot be used: {exc}") from exc


def sqlite_type(kind: pa.DataType) -> pa.DataType | None:
    """Return one of the KINDS that holds the values; None: they become text."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    return pa.binary() if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None
