"""Where a job's rows go: what `--to` names, the output file of a shard, and what the rows are
loaded into at step 6 of the job.

The file is replaced as a whole: Parquet, JSON Lines, CSV, Bedrock's lines. Where the output is no
local folder it is in the job's folder, from which the rows are loaded; for a database as Parquet.

A shard's rows are added in one transaction. Where that may have been done before, because a process
died or no answer came, the shard's rows are removed in the same transaction, so that they are there
once, whatever is killed. An object store shows an object when all of it is there (S3, Google Cloud
Storage, Azure), so that loading a shard again puts the same object in its place.
"""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from streams.batch.progress import Plan
from streams.batch.rows import plain
from streams.batch.sources.places import find, is_taken, open_binary, put
from streams.batch.specification import FILES, OutputFormat, Specification
from streams.contract.errors import Retryable, TidewheelError, UsageError, line_of
from streams.contract.task.extensions import extensions
from streams.runtime.files import replacing

MANIFEST = "_manifest.json"


Write = Callable[[pa.Table], object]
BEDROCK_MANIFEST = "manifest.json.out"
ERROR_CODE = 400  # Bedrock's, of a record that cannot be answered


def part_path(folder: Path, specification: Specification, plan: Plan, shard: int) -> Path:
    """Return the output file of a shard; `folder` is the job's."""
    kind = specification.output_format
    name = f"part-{shard:05}.{kind if kind in FILES else 'parquet'}"
    if kind == "bedrock":
        stem = PurePosixPath(plan.files[plan.shards[shard].file].name).stem
        name = f"{stem}.jsonl.out"
    return (Path(specification.output) if specification.in_files else folder / "staged") / name


@contextmanager
def writing(
    path: Path, kind: OutputFormat, schema: pa.Schema, texts: Collection[str] = ()
) -> Iterator[Write]:
    """Replace the file `path`; `texts` are the columns that hold JSON text."""
    with replacing(path) as file:
        if kind == "parquet" or kind not in FILES:
            repeated = [f.name for f in schema if f.type == pa.string() and f.name != "id"]
            options = {"compression": "zstd", "use_dictionary": repeated}  # of numbers it costs
            with pq.ParquetWriter(file, schema, **options) as writer:
                yield writer.write_table
            return
        if kind == "csv":
            file.write(_csv(schema.names))
        line: Callable[[dict[str, Any]], bytes] = _csv_row if kind == "csv" else _json
        shape = _bedrock if kind == "bedrock" else dict
        yield lambda table: file.writelines(line(shape(row)) for row in _objects(table, texts))


def _objects(table: pa.Table, texts: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield rows as JSON has them."""
    named = zip(table.column_names, table.columns, strict=True)
    columns = [_values(name, values, json_text=name in texts) for name, values in named]
    for row in zip(*columns, strict=True):
        yield dict(zip(table.column_names, row, strict=True))


def _bedrock(row: dict[str, Any]) -> dict[str, Any]:
    """Return a record as it came, with `modelOutput` or `error`."""
    given = row.pop("modelInput")
    found = {"recordId": row["id"], "modelInput": given}
    if row["error"] is None:
        left_out = ("id", "file", "row", "error", "reason")
        return {**found, "modelOutput": {n: v for n, v in row.items() if n not in left_out}}
    message = f"{row['error']}: {row['reason']}"
    return {**found, "error": {"errorCode": ERROR_CODE, "errorMessage": message}}


def _json(found: dict[str, Any]) -> bytes:
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def _csv_row(found: dict[str, Any]) -> bytes:
    """Lists and other nested values are JSON text; null is an empty cell."""
    nested = (dict, list)
    return _csv(
        json.dumps(value, ensure_ascii=False) if isinstance(value, nested) else value
        for value in found.values()
    )


def _csv(cells: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _values(name: str, values: pa.ChunkedArray, *, json_text: bool) -> list[Any]:
    """Return a column as JSON values; raise TidewheelError if it cannot be one."""
    if json_text:
        return [None if text is None else json.loads(text) for text in values.to_pylist()]
    try:
        if pa.types.is_temporal(values.type) and not pa.types.is_duration(values.type):
            values = values.cast(pa.string())  # Python's times have no nanoseconds
        return [plain(value) for value in values.to_pylist()]
    except (ValueError, pa.ArrowException) as exc:
        text = f"column {name!r} cannot be written as JSON: {line_of(exc)}"
        raise TidewheelError(text) from exc


# --- read again, for a sink -----------------------------------------------------------------------

LOADED_ROWS = 8192

Known = Callable[[pa.DataType], bool]  # whether a sink has values of a type


def fitting(kind: pa.DataType, known: Known) -> pa.DataType | None:
    """Return a type that a sink has and that holds the values; None: they become JSON text."""
    wider: list[pa.DataType] = []
    if pa.types.is_dictionary(kind):
        return fitting(kind.value_type, known)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = fitting(kind.value_type, known)
        wider = [] if inner is None else [pa.list_(inner)]
    elif pa.types.is_timestamp(kind):
        wider = [pa.timestamp("us", "UTC" if kind.tz else None)]
    elif pa.types.is_boolean(kind) or (pa.types.is_integer(kind) and kind != pa.uint64()):
        wider = [pa.int64()]
    elif pa.types.is_floating(kind):
        wider = [pa.float32(), pa.float64()] if kind.bit_width < 32 else [pa.float64()]
    elif pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        wider = [pa.string() if pa.types.is_large_string(kind) else pa.binary()]
    return next((one for one in (kind, *wider) if known(one)), None)


def loaded_schema(schema: pa.Schema, known: Known) -> pa.Schema:
    """Return the columns in a sink: the job, then those of the output in types that it has."""
    fields = [pa.field(field.name, fitting(field.type, known) or pa.string()) for field in schema]
    own = [pa.field("job", pa.string()), pa.field("shard", pa.int64())]
    return pa.schema([*own, *fields])


def batches_of(part: Path, job: str, shard: int, known: Known) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a shard's file as `loaded_schema` has them."""
    with pq.ParquetFile(part) as file:
        schema = loaded_schema(file.schema_arrow, known)
        for batch in file.iter_batches(LOADED_ROWS):
            own = [pa.scalar(job, pa.string()), pa.scalar(shard, pa.int64())]
            arrays = [pa.repeat(value, batch.num_rows) for value in own]
            arrays += [_as(array, fitting(array.type, known)) for array in batch.columns]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def reader_of(part: Path, job: str, shard: int, known: Known) -> pa.RecordBatchReader:
    """Return the rows of a shard's file as a stream."""
    schema = loaded_schema(pq.read_schema(part), known)
    return pa.RecordBatchReader.from_batches(schema, batches_of(part, job, shard, known))


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


SUFFIXES: dict[str, OutputFormat] = {
    ".jsonl": "jsonl", ".csv": "csv", ".delta": "delta", ".duckdb": "duckdb",
    ".sqlite": "sqlite", ".db": "sqlite",
}  # fmt: skip
SCHEMES: dict[str, OutputFormat] = {
    "postgresql://": "postgresql", "postgres://": "postgresql",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A folder of files, a database or objects; `place` is an absolute path or a URL."""

    kind: OutputFormat
    place: str

    @property
    def name(self) -> str:
        """A name for the job's folder."""
        if not self.local:
            return self.place.partition("?")[0].rstrip("/").rpartition("/")[2].rpartition(":")[2]
        return Path(self.place).name

    @property
    def beside(self) -> Path:
        """The folder in which the job's folder is by default."""
        return Path(self.place).parent if self.local else Path.cwd()

    @property
    def local(self) -> bool:
        """Whether `place` is a path."""
        return "://" not in self.place


def target_of(text: str, kind: str | None = None) -> Target:
    """Return what `--to` names; raise UsageError for what cannot be one."""
    known = [name for name in get_args(OutputFormat) if name != "own"]
    if kind is not None and kind not in known:
        raise UsageError(f"--output-format {kind}: {', '.join(known)}")
    scheme = next((one for one in SCHEMES if text.startswith(one)), None)
    found: OutputFormat = SCHEMES[scheme] if scheme else SUFFIXES.get(Path(text).suffix, "parquet")
    found = kind or found  # type: ignore[assignment]
    if scheme is None and "://" in text:
        own = kind is None and text.partition("://")[0] in extensions("sinks")
        return Target("own", text) if own else _of_objects(text, found)
    if found == "postgresql" and scheme is None:
        raise UsageError(f"--to {text}: write postgresql://HOST/DATABASE")
    if found == "postgresql":
        if "@" in text and ":" in text.partition("://")[2].partition("@")[0]:
            raise UsageError("--to names a password, which the job would keep: use PGPASSWORD or "
                             "~/.pgpass")  # fmt: skip
        return Target(found, text)
    return Target(found, str(Path(text).absolute()))


def _of_objects(url: str, kind: OutputFormat) -> Target:
    if kind not in FILES or url.startswith(("file://", "local://")):
        raise UsageError(
            f"--to {url}: a URL takes objects of Parquet, JSON Lines or CSV; write a local folder "
            "or a database"
        )
    return Target(kind, url.rstrip("/"))


class ObjectsSink:
    """Objects under a prefix that nothing else is under."""

    def __init__(self, url: str, kind: OutputFormat) -> None:
        self._url, self._kind = url, kind

    def check(self, schema: pa.Schema) -> None:  # noqa: ARG002
        if is_taken(self._url):
            raise UsageError(f"the output {self._url} exists: name another one with --to")

    def prepare(self, schema: pa.Schema) -> None:
        """Do nothing: a store of objects has no folders."""

    def load(self, shard: int, part: Path, *, again: bool) -> None:  # noqa: ARG002
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
