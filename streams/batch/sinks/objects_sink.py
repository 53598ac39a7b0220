"""Objects under a URL that fsspec opens, as output: one a shard, replaced as a whole.

An object store shows an object when all of it is there (S3, Google Cloud Storage, Azure), so that
loading a shard again, after a kill or an answer that was lost, puts the same object in its place.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from streams.batch.records.documents import OutputFormat
from streams.batch.sources.places import find, is_taken, open_binary, put
from streams.contract.errors import Retryable, UsageError


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
