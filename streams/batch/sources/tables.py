"""The seam to Arrow's files and Delta tables, in parts that are read one after the other: Parquet
by row groups, Arrow IPC files by record batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from streams.batch.records.documents import InputFormat, Named, PlannedFile
from streams.batch.records.rows import line_of
from streams.batch.sources.places import is_url, open_binary
from streams.contract.errors import UsageError
from streams.runtime.arrow_files import arrow_files

Failures = (pa.ArrowException, OSError, EOFError, UnicodeDecodeError)  # of an unreadable file
KINDS = {"parquet": "Parquet", "delta": "Parquet", "arrow": "an Arrow IPC file"}
LOG = "_delta_log"

Part = tuple[int, int, int]  # where it starts and stops, and its rows


class Table(Protocol):
    """An open file."""

    @property
    def schema(self) -> pa.Schema: ...

    def parts(self) -> Iterator[Part]:
        """Yield where each part starts and stops, and its rows."""
        ...

    def batches(
        self, start: int, stop: int, columns: list[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the parts from `start` to `stop`, at most `rows` at once."""
        ...


@contextmanager
def opened(file: Named | PlannedFile, kind: InputFormat) -> Iterator[Table]:
    """Open a file; what Arrow raises is among Failures."""
    if file.table is not None:
        root, version, inside = file.table
        schema, found = _fragments(root, version)
        yield _Fragment(schema, found[inside])
    elif kind == "parquet":
        source = open_binary(file.path) if is_url(file.path) else file.path
        with pq.ParquetFile(source, pre_buffer=False) as parquet:
            yield _Parquet(parquet)
    else:  # not mapped: a file that shrinks would kill the process
        remote = is_url(file.path)
        with pa.PythonFile(open_binary(file.path), "r") if remote else pa.OSFile(file.path) as one:
            yield _Arrow(one)


@contextmanager
def opened_input(file: Named | PlannedFile, kind: InputFormat) -> Iterator[Table]:
    """Open a file before it is scored; raise UsageError, by name, if that cannot be read."""
    try:
        with opened(file, kind) as table:
            yield table
    except Failures as exc:
        raise UsageError(f"{file.name} cannot be read as {KINDS[kind]}: {line_of(exc)}") from exc


class _Parquet:
    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema_arrow

    def parts(self) -> Iterator[Part]:
        for i in range(self._file.num_row_groups):
            yield i, i + 1, self._file.metadata.row_group(i).num_rows

    def batches(
        self, start: int, stop: int, columns: list[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        yield from self._file.iter_batches(rows, list(range(start, stop)), columns=columns)


class _Arrow:
    def __init__(self, source: pa.NativeFile) -> None:
        self._source = source
        self._file = pa.ipc.open_file(source)

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema

    def parts(self) -> Iterator[Part]:
        first = self._only([0]) if len(self.schema) else self._file
        for i in range(first.num_record_batches):
            yield i, i + 1, first.get_batch(i).num_rows

    def batches(
        self, start: int, stop: int, columns: list[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        chosen = self._only([self.schema.get_field_index(name) for name in columns])
        for i in range(start, stop):
            batch = chosen.get_batch(i)
            batch.validate(full=True)  # offsets that lie would be read beyond the file
            yield from (batch.slice(at, rows) for at in range(0, batch.num_rows, rows))

    def _only(self, fields: list[int]) -> pa.ipc.RecordBatchFileReader:
        """Return a reader of some columns; the others are not read."""
        self._source.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=sorted(fields), use_threads=False)
        return pa.ipc.open_file(self._source, options=options)


class _Fragment:
    """A data file of a Delta table, with the table's columns: those of its partition have one
    value."""

    def __init__(self, schema: pa.Schema, fragment: ds.ParquetFileFragment) -> None:
        self._schema, self._fragment = schema, fragment

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def parts(self) -> Iterator[Part]:
        for i, group in enumerate(self._fragment.row_groups):
            yield i, i + 1, group.num_rows

    def batches(
        self, start: int, stop: int, columns: list[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        part = self._fragment.subset(row_group_ids=list(range(start, stop)))
        found = part.to_batches(
            schema=self._schema, columns=columns, batch_size=rows, batch_readahead=1
        )
        yield from (batch for batch in found if batch.num_rows)


# --- Delta tables ---------------------------------------------------------------------------------


def delta_files(where: str) -> list[Named]:
    """Return the data files of a table's newest version, by path; raise UsageError for a table that
    cannot be read."""
    root = where.rstrip("/") if is_url(where) else str(Path(where).resolve())
    version, (_, found) = _newest(root, where)
    return [
        Named(name=f"{where.rstrip('/')}/{inside}", path=f"{root}/{inside}",
              table=(root, version, inside))
        for inside in sorted(found)
    ]  # fmt: skip


Fragments = tuple[pa.Schema, dict[str, ds.ParquetFileFragment]]


def _newest(root: str, where: str) -> tuple[int, Fragments]:
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError as exc:
        raise UsageError(f"{where} needs deltalake: pip install 'tidewheel[batch]'") from exc
    try:
        version = DeltaTable(root).version()
        return version, _fragments(root, version)
    except (DeltaError, OSError, pa.ArrowException) as exc:
        raise UsageError(f"{where} cannot be read as a Delta table: {line_of(exc)}") from exc


@cache
def _fragments(root: str, version: int) -> Fragments:
    """Return the columns and the data files of a table at a version."""
    from deltalake import DeltaTable

    found = DeltaTable(root, version=version).to_pyarrow_dataset(filesystem=arrow_files(root))
    return found.schema, {fragment.path: fragment for fragment in found.get_fragments()}
