"""The seam to Arrow's files: Parquet by row groups, Arrow IPC files by record batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from streams.contract.errors import UsageError

Failures = (pa.ArrowException, OSError, UnicodeDecodeError)  # of a file that cannot be read


class Table(Protocol):
    """An open file, in parts that are read one after the other."""

    @property
    def schema(self) -> pa.Schema: ...

    def sizes(self) -> list[int]:
        """Return the rows of each part."""
        ...

    def batches(
        self, start: int, stop: int, columns: list[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the parts `start` to `stop`, at most `rows` at once."""
        ...


@contextmanager
def opened(path: Path) -> Iterator[Table]:
    """Open a file by its suffix; what Arrow raises is among Failures."""
    if path.suffix == ".parquet":
        with pq.ParquetFile(path, pre_buffer=False) as file:
            yield _Parquet(file)
        return
    with pa.OSFile(str(path)) as source:  # not mapped: a file that shrinks would kill the process
        yield _Arrow(source)


@contextmanager
def opened_input(name: str, path: Path) -> Iterator[Table]:
    """Open a file before it is scored; raise UsageError, by name, if that cannot be read."""
    try:
        with opened(path) as table:
            yield table
    except Failures as exc:
        text = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
        kind = "Parquet" if path.suffix == ".parquet" else "an Arrow IPC file"
        raise UsageError(f"{name} cannot be read as {kind}: {text}") from exc


class _Parquet:
    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema_arrow

    def sizes(self) -> list[int]:
        groups = range(self._file.num_row_groups)
        return [self._file.metadata.row_group(i).num_rows for i in groups]

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

    def sizes(self) -> list[int]:
        first = self._only([0]) if len(self.schema) else self._file
        return [first.get_batch(i).num_rows for i in range(first.num_record_batches)]

    def batches(
        self, start: int, stop: int, columns: list[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        chosen = self._only([self.schema.get_field_index(name) for name in columns])
        for i in range(start, stop):
            batch = chosen.get_batch(i)
            batch.validate(full=True)  # offsets that lie would be read beyond the file
            for at in range(0, batch.num_rows, rows):
                yield batch.slice(at, rows)

    def _only(self, fields: list[int]) -> pa.ipc.RecordBatchFileReader:
        """Return a reader of some columns; the others are not read."""
        self._source.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=sorted(fields), use_threads=False)
        return pa.ipc.open_file(self._source, options=options)
