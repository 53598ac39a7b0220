"""Where a job's rows go: what `--to` names, and what they are loaded into at step 6 of the job.

A shard's rows are added in one transaction. Where that may have been done before, because a process
died or no answer came, the shard's rows are removed in the same transaction, so that they are there
once, whatever is killed. An object store shows an object when all of it is there (S3, Google Cloud
Storage, Azure), so that loading a shard again puts the same object in its place.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq

from streams.batch.records.specification import FILES, OutputFormat, Specification
from streams.batch.sources.places import find, is_taken, open_binary, put
from streams.contract.errors import Retryable, UsageError
from streams.contract.task.extensions import OpenSink, Sink, extensions, load_extension

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
        return Target("own", text) if own else _objects(text, found)
    if found == "postgresql" and scheme is None:
        raise UsageError(f"--to {text}: write postgresql://HOST/DATABASE")
    if found == "postgresql":
        if "@" in text and ":" in text.partition("://")[2].partition("@")[0]:
            raise UsageError("--to names a password, which the job would keep: use PGPASSWORD or "
                             "~/.pgpass")  # fmt: skip
        return Target(found, text)
    return Target(found, str(Path(text).absolute()))


def _objects(url: str, kind: OutputFormat) -> Target:
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
        """Nothing: a prefix is no object."""

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


def open_sink(specification: Specification) -> Sink | None:
    """Return the sink of a job, None where its files are the output. Nothing is opened yet."""
    kind, place, table = (
        specification.output_format,
        specification.output,
        specification.settings.table,
    )
    if specification.in_files:
        return None
    if kind in FILES:
        return ObjectsSink(place, kind)
    if kind == "own":
        opened: OpenSink = load_extension("sinks", place.partition("://")[0])
        return opened(place, specification.id)
    if kind == "delta":
        from streams.batch.sinks.tables import DeltaSink

        return DeltaSink(place, specification.id)
    from streams.batch.sinks import tables

    kinds = {"duckdb": tables.DuckDbSink, "sqlite": tables.SqliteSink}
    return kinds.get(kind, tables.PostgresqlSink)(place, table, specification.id)
