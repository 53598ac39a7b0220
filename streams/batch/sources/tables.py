"""The seam to Arrow's files, in parts that are read one after the other: Parquet by row groups,
Arrow IPC files by record batches, Arrow IPC streams by the bytes of their messages."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from streams.batch.records.documents import Constant, InputFormat
from streams.batch.sources.places import is_url, open_binary
from streams.contract.errors import UsageError

Failures = (pa.ArrowException, OSError, EOFError, UnicodeDecodeError)  # of an unreadable file
KINDS = {"parquet": "Parquet", "delta": "Parquet", "arrow": "an Arrow IPC file",
         "arrows": "an Arrow IPC stream"}  # fmt: skip
END = 8  # bytes of the marker with which a stream ends
MOMENTS = {"timestamp": pa.timestamp("us", "UTC"), "timestamp_ntz": pa.timestamp("us")}
DELTA_TYPES = {
    "string": pa.string(), "long": pa.int64(), "integer": pa.int32(), "short": pa.int16(),
    "byte": pa.int8(), "double": pa.float64(), "float": pa.float32(), "boolean": pa.bool_(),
    "date": pa.date32(), **MOMENTS,
}  # fmt: skip

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
def opened(path: str, kind: InputFormat, constants: Sequence[Constant] = ()) -> Iterator[Table]:
    """Open a file; what Arrow raises is among Failures."""
    table: Table
    if kind in ("parquet", "delta"):
        source = open_binary(path) if is_url(path) else path
        with pq.ParquetFile(source, pre_buffer=False) as file:
            table = _Parquet(file)
            yield _WithConstants(table, constants) if constants else table
        return
    # not mapped: a file that shrinks would kill the process
    with pa.PythonFile(open_binary(path), "r") if is_url(path) else pa.OSFile(path) as source:
        yield _Arrow(source) if kind == "arrow" else _Stream(source)


@contextmanager
def opened_input(
    name: str, path: str, kind: InputFormat, constants: Sequence[Constant] = ()
) -> Iterator[Table]:
    """Open a file before it is scored; raise UsageError, by name, if that cannot be read."""
    try:
        with opened(path, kind, constants) as table:
            yield table
    except Failures as exc:
        text = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
        raise UsageError(f"{name} cannot be read as {KINDS[kind]}: {text}") from exc


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
            yield from _checked(chosen.get_batch(i), rows)

    def _only(self, fields: list[int]) -> pa.ipc.RecordBatchFileReader:
        """Return a reader of some columns; the others are not read."""
        self._source.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=sorted(fields), use_threads=False)
        return pa.ipc.open_file(self._source, options=options)


class _Stream:
    """Messages one after the other; a shard begins at any of them, which dictionaries forbid."""

    def __init__(self, source: pa.NativeFile) -> None:
        self._source = source
        self._schema = pa.ipc.read_schema(pa.ipc.read_message(source))
        self._start = source.tell()
        coded = [field.name for field in self._schema if pa.types.is_dictionary(field.type)]
        if coded:
            raise pa.ArrowInvalid(
                f"column {coded[0]!r} is dictionary-encoded: write an Arrow file instead"
            )

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def parts(self) -> Iterator[Part]:
        self._source.seek(self._start)
        start = self._start
        while (batch := self._next()) is not None:
            yield start, self._source.tell(), batch.num_rows
            start = self._source.tell()
        if self._source.tell() != start + END:
            raise pa.ArrowInvalid("the stream has no end: it was cut off")

    def batches(
        self, start: int, stop: int, columns: list[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        self._source.seek(start)
        while self._source.tell() < stop and (batch := self._next()) is not None:
            yield from _checked(batch.select(columns), rows)

    def _next(self) -> pa.RecordBatch | None:
        try:
            message = pa.ipc.read_message(self._source)
        except EOFError:
            return None
        return pa.ipc.read_record_batch(message, self._schema)


class _WithConstants:
    """A file of a partitioned table: its partition columns have one value."""

    def __init__(self, table: Table, constants: Sequence[Constant]) -> None:
        self._table, self._constants = table, constants

    @property
    def schema(self) -> pa.Schema:
        more = [pa.field(c.name, DELTA_TYPES[c.type]) for c in self._constants]
        return pa.schema([*self._table.schema, *more])

    def parts(self) -> Iterator[Part]:
        return self._table.parts()

    def batches(
        self, start: int, stop: int, columns: list[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        constant = {c.name: _value(c) for c in self._constants}
        stored = [name for name in columns if name not in constant]
        for batch in self._table.batches(start, stop, stored, rows):
            arrays = [
                pa.repeat(constant[name], batch.num_rows)
                if name in constant
                else batch.column(name)
                for name in columns
            ]
            yield pa.RecordBatch.from_arrays(arrays, columns)


def _value(constant: Constant) -> pa.Scalar:
    """Return the value of a partition column; of a timestamp its text is microseconds."""
    kind = DELTA_TYPES[constant.type]
    if constant.type in MOMENTS and constant.value is not None:
        return pa.scalar(int(constant.value), pa.int64()).cast(kind)
    return pa.scalar(constant.value, pa.string()).cast(kind)


def _checked(batch: pa.RecordBatch, rows: int) -> Iterator[pa.RecordBatch]:
    batch.validate(full=True)  # offsets that lie would be read beyond the file
    for at in range(0, batch.num_rows, rows):
        yield batch.slice(at, rows)
