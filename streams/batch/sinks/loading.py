"""What a job's rows are loaded into, at step 6 of the job; and objects under a URL.

A sink that keeps a ledger adds a shard's rows and the shard's row of the ledger in one transaction,
so that a shard is loaded once, whatever is killed. An object store shows an object when all of it
is there (S3, Google Cloud Storage, Azure), so that loading a shard again puts the same object in
its place.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from streams.batch.records.documents import OutputFormat
from streams.batch.sinks.files import plain
from streams.batch.sources.places import find, is_taken, open_binary, put
from streams.contract.errors import Retryable, UsageError

LOADED_ROWS = 8192

Convert = Callable[[pa.DataType], pa.DataType | None]  # None: the value becomes JSON text


class Sink(Protocol):
    """What a job's shards are loaded into. Retryable errors are tried again."""

    def check(self, schema: pa.Schema) -> None:
        """Raise UsageError if the rows do not fit; change nothing."""
        ...

    def prepare(self, schema: pa.Schema) -> None:
        """Create what is missing."""
        ...

    def committed(self, shard: int, generation: int) -> bool:
        """Return whether the rows of this generation of a shard are there."""
        ...

    def load(self, shard: int, generation: int, part: Path) -> None:
        """Add the rows of a shard's file in place of those of earlier generations, all or none,
        unless they are there."""
        ...

    def count(self) -> int | None:
        """Return how many rows of this job are there; None: it cannot tell."""
        ...


def loaded_schema(schema: pa.Schema, convert: Convert) -> pa.Schema:
    """Return the columns in a sink: the job, then those of the output in types that it has."""
    fields = [pa.field(field.name, convert(field.type) or pa.string()) for field in schema]
    own = [pa.field("job", pa.string()), pa.field("shard", pa.int64())]
    return pa.schema([*own, *fields])


def batches_of(part: Path, job: str, shard: int, convert: Convert) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a shard's file as `loaded_schema` has them."""
    with pq.ParquetFile(part) as file:
        schema = loaded_schema(file.schema_arrow, convert)
        for batch in file.iter_batches(LOADED_ROWS):
            own = [pa.scalar(job, pa.string()), pa.scalar(shard, pa.int64())]
            arrays = [pa.repeat(value, batch.num_rows) for value in own]
            arrays += [_as(array, convert(array.type)) for array in batch.columns]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def reader_of(part: Path, job: str, shard: int, convert: Convert) -> pa.RecordBatchReader:
    """Return the rows of a shard's file as a stream."""
    schema = loaded_schema(pq.read_schema(part), convert)
    return pa.RecordBatchReader.from_batches(schema, batches_of(part, job, shard, convert))


def refuse_columns(where: str, found: Mapping[str, Any] | set[str], wanted: pa.Schema) -> None:
    """Raise UsageError if a table that exists lacks a column of the rows."""
    missing = [name for name in wanted.names if name not in found]
    if missing:
        raise UsageError(
            f"{where} has no column {missing[0]!r}, which the rows have: name another --table"
        )


def _as(array: pa.Array, kind: pa.DataType | None) -> pa.Array:
    if kind is None:
        return _texts(array)
    return array if array.type == kind else array.cast(kind, safe=False)


def _texts(array: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    values = [None if v is None else plain(v) for v in array.to_pylist()]
    texts = [
        v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values
    ]
    return pa.array(texts, pa.string())


class ObjectsSink:
    """Objects under a prefix that nothing else is under."""

    def __init__(self, url: str, kind: OutputFormat) -> None:
        self._url, self._kind = url, kind

    def check(self, schema: pa.Schema) -> None:  # noqa: ARG002
        if is_taken(self._url):
            raise UsageError(f"the output {self._url} exists: name another one with --to")

    def prepare(self, schema: pa.Schema) -> None:
        """Nothing: a prefix is no object."""

    def committed(self, shard: int, generation: int) -> bool:  # noqa: ARG002
        """Return False: an object does not tell its generation."""
        return False

    def load(self, shard: int, generation: int, part: Path) -> None:  # noqa: ARG002
        try:
            put(part, f"{self._url}/{part.name}")
        except OSError as exc:
            raise Retryable(str(exc)) from exc

    def count(self) -> int | None:
        """Return the rows of the objects; None where only reading them would tell."""
        if self._kind != "parquet":
            return None
        rows = 0
        for _, path in find(self._url, lambda name: name.endswith(".parquet")):
            with open_binary(path) as file:
                rows += pq.read_metadata(file).num_rows
        return rows
