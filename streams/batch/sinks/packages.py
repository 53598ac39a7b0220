"""The seam to the sinks of installed packages, whose code may raise anything."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from streams.contract.errors import TidewheelError, UsageError, line_of, own_line
from streams.contract.task.extensions import OpenSink, Sink, load_extension, package_of


class PackageSink:
    """A package's sink. What its code raises becomes TidewheelError, with the names of both;
    TidewheelErrors stay as they are. What fails before a job is submitted is a UsageError."""

    def __init__(self, place: str, job: str) -> None:
        name = place.partition("://")[0]
        self._what = f"sink {name} of {package_of('sinks', name)}"
        made: OpenSink = load_extension("sinks", name)
        with self._translated(UsageError):
            self._sink: Sink = made(place, job)

    def check(self, schema: pa.Schema) -> None:
        with self._translated(UsageError):
            self._sink.check(schema)

    def prepare(self, schema: pa.Schema) -> None:
        with self._translated(TidewheelError):
            self._sink.prepare(schema)

    def load(self, shard: int, part: Path, *, again: bool) -> None:
        with self._translated(TidewheelError):
            self._sink.load(shard, part, again=again)

    def count(self) -> int | None:
        with self._translated(TidewheelError):
            return self._sink.count()

    @contextmanager
    def _translated(self, kind: type[TidewheelError]) -> Iterator[None]:
        try:
            yield
        except TidewheelError:
            raise
        except Exception as exc:
            text = f"{self._what}: {type(exc).__name__}: {line_of(exc)}{own_line(exc)}"
            raise kind(text) from exc
