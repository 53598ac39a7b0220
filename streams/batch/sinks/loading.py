"""Loading a shard's rows into a database, a topic or objects: step 6 of a job.

A sink that keeps a ledger adds a shard's rows and the shard's row of the ledger in one transaction,
so that a shard is loaded once, whatever is killed. A topic keeps none: it gets a shard again where
nobody knows whether it has it, under the same keys. An object is replaced by the same one.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from streams.batch.records.documents import FILES, Specification
from streams.batch.sinks.part_files import plain
from streams.contract.errors import UsageError
from streams.kafka.settings import BrokerSettings

LEDGER = "tidewheel_shards"
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


def open_sink(
    specification: Specification, broker: Callable[[], BrokerSettings] | None = None
) -> Sink | None:
    """Return the sink of a job, None where its files are the output. Nothing is opened yet."""
    kind, place, table = specification.output_format, specification.output, specification.table
    if specification.in_files:
        return None
    if kind in FILES:
        from streams.batch.sinks.objects_sink import ObjectsSink

        return ObjectsSink(place, kind)
    if kind == "delta":
        from streams.batch.sinks.delta_sink import DeltaSink

        return DeltaSink(place, specification.id)
    if kind == "duckdb":
        from streams.batch.sinks.duckdb_sink import DuckDbSink

        return DuckDbSink(place, table, specification.id)
    if kind == "sqlite":
        from streams.batch.sinks.sqlite_sink import SqliteSink

        return SqliteSink(place, table, specification.id)
    if kind == "postgresql":
        from streams.batch.sinks.postgresql_sink import PostgresqlSink

        return PostgresqlSink(place, table, specification.id)
    from streams.batch.sinks.kafka_sink import KafkaSink

    if broker is None:
        raise UsageError("--to kafka:TOPIC needs a broker: set TIDEWHEEL_KAFKA")
    return KafkaSink(broker(), place, specification.id)


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
