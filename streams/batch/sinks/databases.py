"""Databases as output: a transaction a shard, with its row of the ledger. DuckDB, SQLite, and the
seam to PostgreSQL by ADBC; each is opened for one operation only, so that others are not kept out.

SQLite has lists and other values that it lacks as JSON text, times as ISO 8601 text, booleans as 0
and 1.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from re import sub
from typing import Any

import duckdb
import pyarrow as pa

from streams.batch.records.rows import line_of
from streams.batch.sinks.loading import (
    batches_of,
    loaded_schema,
    reader_of,
    refuse_columns,
)
from streams.contract.errors import Retryable, TidewheelError, UsageError

LEDGER = "tidewheel_shards"
WAIT_S = 30.0  # for another writer of SQLite
AWAY = ("57", "08", "53", "40")  # classes of PostgreSQL's SQLSTATE: going down, no connection, ...
UNIQUE = "23505"
TIMES = (pa.timestamp("us", "UTC"), pa.timestamp("us"))


class DatabaseSink:
    """A table in a database; what differs between databases is in its subclasses."""

    begin, columns = "BEGIN", ""
    kinds: dict[pa.DataType, str] = {}

    def __init__(self, place: str, table: str, job: str) -> None:
        self._place, self._name, self._job = place, table, job
        self._table = '"' + table.replace('"', '""') + '"'

    # --- of one database --------------------------------------------------------------------------

    def connect(self) -> Any:
        """Return a connection."""
        raise NotImplementedError

    def failed(self, exc: Exception) -> TidewheelError:
        """Return what a library's error means; raise another one again."""
        raise NotImplementedError

    def convert(self, kind: pa.DataType) -> pa.DataType | None:
        """Return one of the kinds that holds the values; None: they become text."""
        raise NotImplementedError

    def insert(self, cursor: Any, part: Path, shard: int) -> None:
        """Add the rows of a file."""
        raise NotImplementedError

    def sql(self, query: str) -> str:
        """Return a statement with the marks that the database has for values."""
        return query

    def lock(self, cursor: Any, shard: int) -> None:
        """Wait for another process that loads this shard, where the transaction does not."""

    # --- of all -----------------------------------------------------------------------------------

    def check(self, schema: pa.Schema) -> None:
        if "://" not in self._place and not Path(self._place).exists():
            return
        with self._open() as cursor:
            cursor.execute(self.sql(self.columns), [self._name])
            found = {name for (name,) in cursor.fetchall()}
        if found:
            where = f"table {self._name} of {self._place}"
            refuse_columns(where, found, loaded_schema(schema, self.convert))

    def prepare(self, schema: pa.Schema) -> None:
        if "://" not in self._place:
            Path(self._place).parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as cursor:
            self.create(cursor, loaded_schema(schema, self.convert))
            cursor.execute(
                f"CREATE TABLE IF NOT EXISTS {LEDGER} (job TEXT NOT NULL, shard BIGINT NOT NULL, "
                "generation BIGINT NOT NULL, PRIMARY KEY (job, shard))"
            )

    def create(self, cursor: Any, schema: pa.Schema) -> None:
        columns = [f'"{f.name.replace(chr(34), chr(34) * 2)}" {self.kinds[f.type]}' for f in schema]
        cursor.execute(f"CREATE TABLE IF NOT EXISTS {self._table} ({', '.join(columns)})")

    def committed(self, shard: int, generation: int) -> bool:
        with self._open() as cursor:
            return self._known(cursor, shard, generation)

    def load(self, shard: int, generation: int, part: Path) -> None:
        with self._transaction() as cursor:
            self.lock(cursor, shard)
            if self._known(cursor, shard, generation):
                return
            if generation > 1:
                query = f"DELETE FROM {self._table} WHERE job = ? AND shard = ?"
                cursor.execute(self.sql(query), [self._job, shard])
            note = (
                f"INSERT INTO {LEDGER} VALUES (?, ?, ?) ON CONFLICT (job, shard) "
                "DO UPDATE SET generation = excluded.generation"
            )
            cursor.execute(self.sql(note), [self._job, shard, generation])
            self.insert(cursor, part, shard)

    def count(self) -> int | None:
        query = f"SELECT count(*) FROM {self._table} WHERE job = ?"
        with self._open() as cursor:
            cursor.execute(self.sql(query), [self._job])
            return int(cursor.fetchall()[0][0])

    def _known(self, cursor: Any, shard: int, generation: int) -> bool:
        query = f"SELECT count(*) FROM {LEDGER} WHERE job = ? AND shard = ? AND generation >= ?"
        cursor.execute(self.sql(query), [self._job, shard, generation])
        return bool(cursor.fetchall()[0][0])

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._open(begin=True) as cursor:
            yield cursor

    @contextmanager
    def _open(self, *, begin: bool = False) -> Iterator[Any]:
        try:
            with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
                if begin and self.begin:
                    cursor.execute(self.begin)
                yield cursor
                if begin:
                    (cursor if self.begin == "BEGIN" else connection).commit()
        except TidewheelError:
            raise
        except Exception as exc:
            raise self.failed(exc) from exc

    def _says(self, exc: Exception, *, again: bool) -> TidewheelError:
        kind = Retryable if again else TidewheelError
        return kind(f"the database {self._place} cannot be used: {line_of(exc)}")


class DuckDbSink(DatabaseSink):
    """A table in a database file of DuckDB, which takes Arrow as it is."""

    columns = "SELECT column_name FROM duckdb_columns() WHERE table_name = ?"

    def connect(self) -> Any:
        return duckdb.connect(self._place)

    def failed(self, exc: Exception) -> TidewheelError:
        if not isinstance(exc, duckdb.Error):
            raise exc
        return self._says(
            exc, again=isinstance(exc, duckdb.IOException) and "lock" in str(exc).lower()
        )

    def convert(self, kind: pa.DataType) -> pa.DataType | None:
        if pa.types.is_dictionary(kind):
            return kind.value_type
        return pa.float32() if pa.types.is_float16(kind) else kind

    def create(self, cursor: Any, schema: pa.Schema) -> None:
        cursor.register("rows", schema.empty_table())
        cursor.execute(f"CREATE TABLE IF NOT EXISTS {self._table} AS SELECT * FROM rows")

    def insert(self, cursor: Any, part: Path, shard: int) -> None:
        cursor.register("rows", reader_of(part, self._job, shard, self.convert))
        cursor.execute(f"INSERT INTO {self._table} BY NAME SELECT * FROM rows")


class SqliteSink(DatabaseSink):
    """A table in a database file of SQLite."""

    begin, columns = "BEGIN IMMEDIATE", "SELECT name FROM pragma_table_info(?)"
    kinds = {pa.string(): "TEXT", pa.int64(): "INTEGER", pa.float64(): "REAL", pa.binary(): "BLOB"}

    def connect(self) -> Any:
        # isolation_level None: a transaction begins where we say so
        connection = sqlite3.connect(self._place, timeout=WAIT_S, isolation_level=None)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def failed(self, exc: Exception) -> TidewheelError:
        if not isinstance(exc, sqlite3.Error | OverflowError):
            raise exc
        return self._says(exc, again="locked" in str(exc))

    def convert(self, kind: pa.DataType) -> pa.DataType | None:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return pa.string()
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return pa.int64()
        if pa.types.is_floating(kind):
            return pa.float64()
        return pa.binary() if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None

    def insert(self, cursor: Any, part: Path, shard: int) -> None:
        for batch in batches_of(part, self._job, shard, self.convert):
            names = ", ".join('"' + n.replace('"', '""') + '"' for n in batch.schema.names)
            marks = ", ".join("?" * batch.num_columns)
            rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            cursor.executemany(f"INSERT INTO {self._table} ({names}) VALUES ({marks})", rows)


class PostgresqlSink(DatabaseSink):
    """A table in a PostgreSQL database."""

    begin = ""  # ADBC begins a transaction with the first statement
    columns = (
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(quote_ident(?)) "
        "AND attnum > 0"
    )
    kinds = {
        pa.string(): "TEXT", pa.int64(): "BIGINT", pa.float32(): "REAL", pa.float64():
        "DOUBLE PRECISION", pa.bool_(): "BOOLEAN", pa.binary(): "BYTEA", pa.date32(): "DATE",
        TIMES[0]: "TIMESTAMPTZ", TIMES[1]: "TIMESTAMP", pa.list_(pa.float32()): "REAL[]",
        pa.list_(pa.float64()): "DOUBLE PRECISION[]",
    }  # fmt: skip

    def connect(self) -> Any:
        try:
            from adbc_driver_postgresql import dbapi
        except ImportError as exc:
            text = "PostgreSQL needs a library: pip install 'tidewheel[postgresql]'"
            raise UsageError(text) from exc
        return dbapi.connect(self._place)

    def failed(self, exc: Exception) -> TidewheelError:
        import adbc_driver_manager

        if not isinstance(exc, adbc_driver_manager.Error):
            raise exc
        state = (getattr(exc, "sqlstate", None) or "").strip("\x00")
        # without a state it is the connection that has failed
        return self._says(exc, again=not state or state.startswith(AWAY) or state == UNIQUE)

    def sql(self, query: str) -> str:
        numbers = count(1)
        return sub(r"\?", lambda _: f"${next(numbers)}", query)

    def convert(self, kind: pa.DataType) -> pa.DataType | None:
        if pa.types.is_nested(kind) and hasattr(kind, "value_type"):
            found = pa.list_(kind.value_type)  # Parquet names a list's values in another way
            return found if found in self.kinds else None
        if pa.types.is_integer(kind):
            return pa.int64() if kind != pa.uint64() else None
        if pa.types.is_timestamp(kind):
            return TIMES[0] if kind.tz else TIMES[1]
        if pa.types.is_large_string(kind):
            return pa.string()
        if pa.types.is_float16(kind):
            return pa.float32()
        return kind if kind in self.kinds else None

    def lock(self, cursor: Any, shard: int) -> None:
        query = "SELECT pg_advisory_xact_lock(hashtext($1), $2::INT)"
        cursor.execute(query, [self._job, shard])
        cursor.fetchall()

    def insert(self, cursor: Any, part: Path, shard: int) -> None:
        reader = reader_of(part, self._job, shard, self.convert)
        cursor.adbc_ingest(self._name, reader, mode="append")
