"""The seam to PostgreSQL as output, by ADBC: a transaction a shard, with its row of the ledger."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

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
from streams.contract.errors import Retryable, TidewheelError, UsageError

KINDS = {
    pa.string(): "TEXT", pa.int64(): "BIGINT", pa.float32(): "REAL", pa.float64():
    "DOUBLE PRECISION", pa.bool_(): "BOOLEAN", pa.binary(): "BYTEA", pa.date32(): "DATE",
    pa.timestamp("us", "UTC"): "TIMESTAMPTZ", pa.timestamp("us"): "TIMESTAMP",
    pa.list_(pa.float32()): "REAL[]", pa.list_(pa.float64()): "DOUBLE PRECISION[]",
}  # fmt: skip
AWAY = ("57", "08", "53", "40")  # classes of SQLSTATE: going down, no connection, too few
UNIQUE = "23505"


class PostgresqlSink:
    """A table in a database."""

    def __init__(self, place: str, table: str, job: str) -> None:
        self._place, self._table, self._job = place, table, job

    def check(self, schema: pa.Schema) -> None:
        query = "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0"
        with self._open() as cursor:
            cursor.execute(query, (identifier(self._table),))
            found = {name for (name,) in cursor.fetchall()}
        if found:
            wanted = loaded_schema(schema, postgresql_type)
            refuse_columns(f"table {self._table} of {self._place}", found, wanted)

    def prepare(self, schema: pa.Schema) -> None:
        wanted = loaded_schema(schema, postgresql_type)
        columns = ", ".join(f"{identifier(field.name)} {KINDS[field.type]}" for field in wanted)
        with self._open() as cursor:
            cursor.execute(f"CREATE TABLE IF NOT EXISTS {identifier(self._table)} ({columns})")
            cursor.execute(ledger_sql())
            cursor.connection.commit()

    def committed(self, shard: int, generation: int) -> bool:
        with self._open() as cursor:
            return self._known(cursor, shard, generation)

    def load(self, shard: int, generation: int, part: Path) -> None:
        with self._open() as cursor:
            # another process that loads this shard waits for the outcome
            cursor.execute(
                "SELECT pg_advisory_xact_lock(hashtext($1), $2::INT)", (self._job, shard)
            )
            cursor.fetchall()
            if self._known(cursor, shard, generation):
                return
            if generation > 1:
                cursor.execute(forget_sql(self._table, "$1", "$2"), (self._job, shard))
            cursor.execute(note_sql("$1", "$2", "$3"), (self._job, shard, generation))
            reader = reader_of(part, self._job, shard, postgresql_type)
            cursor.adbc_ingest(self._table, reader, mode="append")
            cursor.connection.commit()

    def count(self) -> int | None:
        with self._open() as cursor:
            cursor.execute(count_sql(self._table, "$1"), (self._job,))
            return int(cursor.fetchone()[0])

    def _known(self, cursor: Any, shard: int, generation: int) -> bool:
        cursor.execute(known_sql("$1", "$2", "$3"), (self._job, shard, generation))
        return bool(cursor.fetchone()[0])

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            import adbc_driver_manager
            from adbc_driver_postgresql import dbapi
        except ImportError as exc:
            raise UsageError(
                "PostgreSQL needs a library: pip install 'tidewheel[postgresql]'"
            ) from exc
        try:
            with closing(dbapi.connect(self._place)) as connection, connection.cursor() as cursor:
                yield cursor
        except adbc_driver_manager.Error as exc:
            state = getattr(exc, "sqlstate", None) or ""
            text = " ".join(str(exc).split())[:300]
            # without a state it is the connection that has failed
            again = not state.strip("\x00") or state.startswith(AWAY) or state == UNIQUE
            kind = Retryable if again else TidewheelError
            raise kind(f"the database {self._place}: {text}") from exc


def postgresql_type(kind: pa.DataType) -> pa.DataType | None:
    """Return one of the KINDS that holds the values; None: they become text."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        found = pa.list_(kind.value_type)  # Parquet names a list's values in another way
        return found if found in KINDS else None
    if kind in KINDS:
        return kind
    if pa.types.is_integer(kind):
        return pa.int64() if kind != pa.uint64() else None
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC") if kind.tz else pa.timestamp("us")
    if pa.types.is_large_string(kind):
        return pa.string()
    return pa.float32() if pa.types.is_float16(kind) else None
