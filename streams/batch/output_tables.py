"""Tables as output. Databases, a transaction a shard: DuckDB, SQLite, and the seam to PostgreSQL by
ADBC; each is opened for one operation only, so that others are not kept out. Delta Lake tables, a
commit a shard.

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
import pyarrow.dataset as ds
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from streams.batch.output_files import batches_of, loaded_schema, reader_of, refuse_columns
from streams.contract.errors import Retryable, TidewheelError, UsageError, line_of
from streams.runtime.files import arrow_files

WAIT_S = 30.0  # for another writer of SQLite
# of PostgreSQL's SQLSTATE: going down, no connection, ..., and a table that another job creates
AWAY = ("57", "08", "53", "40", "23505")


class DatabaseSink:
    """A table in a database; what differs between databases is in its subclasses. `kinds` are the
    types that a table has, by Arrow's."""

    begin, columns = "BEGIN", ""
    kinds: dict[pa.DataType, str] = {}

    def __init__(self, place: str, table: str, job: str) -> None:
        self._place, self._name, self._job = place, table, job
        self._table = _quoted(table)

    # --- of one database --------------------------------------------------------------------------

    def connect(self) -> Any:
        """Return a connection."""
        raise NotImplementedError

    def passes(self, exc: Exception) -> bool | None:
        """Return whether a library's error may pass; None: it is none of the database's."""
        raise NotImplementedError

    def insert(self, cursor: Any, part: Path, shard: int) -> None:
        """Add the rows of a file."""
        raise NotImplementedError

    def sql(self, query: str) -> str:
        """Return a statement with the marks that the database has for values."""
        return query

    def known(self, kind: pa.DataType) -> bool:
        return kind in self.kinds

    def create(self, cursor: Any, schema: pa.Schema) -> None:
        columns = [f"{_quoted(field.name)} {self.kinds[field.type]}" for field in schema]
        cursor.execute(f"CREATE TABLE IF NOT EXISTS {self._table} ({', '.join(columns)})")

    # --- of all -----------------------------------------------------------------------------------

    def check(self, schema: pa.Schema) -> None:
        if "://" not in self._place and not Path(self._place).exists():
            return
        with self._open() as cursor:
            found = {name for (name,) in self._asked(cursor, self.columns, self._name)}
        if found:
            where = f"table {self._name} of {self._place}"
            refuse_columns(where, found, loaded_schema(schema, self.known))

    def prepare(self, schema: pa.Schema) -> None:
        if "://" not in self._place:
            Path(self._place).parent.mkdir(parents=True, exist_ok=True)
        with self._open(begin=True) as cursor:
            self.create(cursor, loaded_schema(schema, self.known))

    def load(self, shard: int, part: Path, *, again: bool) -> None:
        with self._open(begin=True) as cursor:
            if again:
                query = f"DELETE FROM {self._table} WHERE job = ? AND shard = ?"
                cursor.execute(self.sql(query), [self._job, shard])
            self.insert(cursor, part, shard)

    def count(self) -> int | None:
        query = f"SELECT count(*) FROM {self._table} WHERE job = ?"
        with self._open() as cursor:
            return int(self._asked(cursor, query, self._job)[0][0])

    def _asked(self, cursor: Any, query: str, *values: object) -> list[Any]:
        cursor.execute(self.sql(query), list(values))
        return list(cursor.fetchall())

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
            passes = self.passes(exc)
            if passes is None:
                raise
            kind = Retryable if passes else TidewheelError
            raise kind(f"the database {self._place} cannot be used: {line_of(exc)}") from exc


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class DuckDbSink(DatabaseSink):
    """A table in a database file of DuckDB, which takes Arrow as it is."""

    columns = "SELECT column_name FROM duckdb_columns() WHERE table_name = ?"

    def connect(self) -> Any:
        return duckdb.connect(self._place)

    def passes(self, exc: Exception) -> bool | None:
        if not isinstance(exc, duckdb.Error):
            return None
        return isinstance(exc, duckdb.IOException) and "lock" in str(exc).lower()

    def known(self, kind: pa.DataType) -> bool:
        return not pa.types.is_float16(kind)

    def create(self, cursor: Any, schema: pa.Schema) -> None:
        cursor.register("rows", schema.empty_table())
        cursor.execute(f"CREATE TABLE IF NOT EXISTS {self._table} AS SELECT * FROM rows")

    def insert(self, cursor: Any, part: Path, shard: int) -> None:
        cursor.register("rows", reader_of(part, self._job, shard, self.known))
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

    def passes(self, exc: Exception) -> bool | None:
        return "locked" in str(exc) if isinstance(exc, sqlite3.Error | OverflowError) else None

    def insert(self, cursor: Any, part: Path, shard: int) -> None:
        for batch in batches_of(part, self._job, shard, self.known):
            names, marks = ", ".join(map(_quoted, batch.schema.names)), ", ?" * batch.num_columns
            rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            query = f"INSERT INTO {self._table} ({names}) VALUES ({marks[2:]})"
            cursor.executemany(query, rows)


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
        pa.timestamp("us", "UTC"): "TIMESTAMPTZ", pa.timestamp("us"): "TIMESTAMP",
        pa.list_(pa.float32()): "REAL[]", pa.list_(pa.float64()): "DOUBLE PRECISION[]",
    }  # fmt: skip

    def connect(self) -> Any:
        try:
            from adbc_driver_postgresql import dbapi
        except ImportError as exc:
            text = "PostgreSQL needs a library: pip install 'tidewheel[postgresql]'"
            raise UsageError(text) from exc
        return dbapi.connect(self._place)

    def passes(self, exc: Exception) -> bool | None:
        import adbc_driver_manager

        if not isinstance(exc, adbc_driver_manager.Error):
            return None
        state = (getattr(exc, "sqlstate", None) or "").strip("\x00")
        return not state or state.startswith(AWAY)  # without one the connection has failed

    def sql(self, query: str) -> str:
        numbers = count(1)
        return sub(r"\?", lambda _: f"${next(numbers)}", query)

    def insert(self, cursor: Any, part: Path, shard: int) -> None:
        reader = reader_of(part, self._job, shard, self.known)
        cursor.adbc_ingest(self._name, reader, mode="append")


# --- Delta tables ---------------------------------------------------------------------------------

PLAIN = {
    pa.string(), pa.int64(), pa.int32(), pa.int16(), pa.int8(), pa.float32(), pa.float64(),
    pa.bool_(), pa.date32(), pa.binary(), pa.timestamp("us"), pa.timestamp("us", "UTC"),
}  # fmt: skip


class DeltaSink:
    """A table in a local folder."""

    def __init__(self, place: str, job: str) -> None:
        self._place, self._job = place, job

    def check(self, schema: pa.Schema) -> None:
        with _translated(self._place):
            table = self._table()
            if table is not None:
                found = {field.name for field in table.schema().fields}
                refuse_columns(self._place, found, loaded_schema(schema, _known))

    def prepare(self, schema: pa.Schema) -> None:
        with _translated(self._place):
            if self._table() is None:
                Path(self._place).mkdir(parents=True, exist_ok=True)
                DeltaTable.create(self._place, loaded_schema(schema, _known), mode="ignore")

    def load(self, shard: int, part: Path, *, again: bool) -> None:
        rows: dict[str, Any] = {"mode": "append"}
        if again:
            own = f"job = '{self._job}' AND shard = {shard}"
            rows = {"mode": "overwrite", "predicate": own}
        with _translated(self._place):
            write_deltalake(self._place, reader_of(part, self._job, shard, _known), **rows)

    def count(self) -> int | None:
        with _translated(self._place):
            table = self._table()
            if table is None:
                return 0
            rows = _rows_in(table, self._place).count_rows(filter=ds.field("job") == self._job)
            return int(rows)

    def _table(self) -> Any:
        try:
            return DeltaTable(self._place)
        except TableNotFoundError:
            return None


def dataset_of(where: str) -> ds.Dataset:
    """Return a table's newest version as a dataset; raise TidewheelError if it cannot be read."""
    with _translated(where):
        return _rows_in(DeltaTable(where), where)


def _rows_in(table: DeltaTable, where: str) -> ds.Dataset:
    return table.to_pyarrow_dataset(filesystem=arrow_files(where))


def _known(kind: pa.DataType) -> bool:
    plain = _known(kind.value_type) if pa.types.is_list(kind) else kind in PLAIN
    return plain or bool(pa.types.is_decimal128(kind))


@contextmanager
def _translated(where: str) -> Iterator[None]:
    try:
        yield
    except CommitFailedError as exc:
        raise Retryable(f"another process writes the table {where}: {line_of(exc)}") from exc
    except (DeltaError, OSError) as exc:
        raise TidewheelError(f"the table {where} cannot be used: {line_of(exc)}") from exc
