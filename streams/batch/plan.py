"""The plan of a job: every input file hashed and cut into shards, and later compared with it."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from streams.batch.documents import InputFormat, Named, Plan, PlannedFile, Shard
from streams.batch.json_rows import MAX_LINE_BYTES, lines_of
from streams.batch.tables import opened_input
from streams.contract.errors import TidewheelError, UsageError

SHARD_ROWS = 100_000  # of Parquet and Arrow, unless one row group or record batch has more
SHARD_BYTES = 16_000_000  # of JSON Lines, and what is left of the last line

Stamp = tuple[int, int]  # bytes, and the time of the last change in nanoseconds


class Stopped(Exception):
    """Ctrl-C or SIGTERM came while the input was hashed."""


@dataclass(frozen=True)
class Cutter:
    """Hashes and cuts files; `check` is called between two parts of the work."""

    kind: InputFormat
    check: Callable[[], None]
    shard_rows: int = SHARD_ROWS
    shard_bytes: int = SHARD_BYTES
    line_bytes: int = MAX_LINE_BYTES

    def plan(self, files: list[Named]) -> Plan:
        """Return the plan; raise TidewheelError for a file that changes meanwhile."""
        planned: list[PlannedFile] = []
        shards: list[Shard] = []
        for index, file in enumerate(files):
            path = Path(file.path)
            before = stamp_of(file.name, path)
            try:
                digest, cuts = self._cut(index, file.name, path)
            except OSError as exc:
                raise UsageError(f"{file.name} cannot be read: {exc.strerror or exc}") from exc
            if stamp_of(file.name, path) != before:
                raise TidewheelError(f"{file.name} was changed while it was read")
            shards += cuts
            planned.append(
                PlannedFile(
                    name=file.name,
                    path=file.path,
                    sha256=digest,
                    bytes=before[0],
                    modified_ns=before[1],
                    rows=sum(shard.rows for shard in cuts),
                )
            )
        return Plan(files=planned, shards=shards)

    def _cut(self, index: int, name: str, path: Path) -> tuple[str, list[Shard]]:
        if self.kind != "jsonl":
            return hash_file(path, self.check), list(self._parts(index, name, path))
        digest = hashlib.sha256()
        cuts = self._lines(index, path, digest)
        return digest.hexdigest(), cuts

    def _parts(self, index: int, name: str, path: Path) -> Iterator[Shard]:
        with opened_input(name, path) as table:
            sizes = table.sizes()
        start = first = rows = 0
        for i, size in enumerate([*sizes, self.shard_rows]):  # the last one ends the last shard
            if rows and rows + size > self.shard_rows:
                yield Shard(file=index, start=start, stop=i, first_row=first, rows=rows)
                start, first, rows = i, first + rows, 0
            rows += size

    def _lines(self, index: int, path: Path, digest: "hashlib._Hash") -> list[Shard]:
        cuts: list[Shard] = []
        start = first = rows = last = 0
        with path.open("rb") as file:
            for end, _ in lines_of(file, self.line_bytes, digest.update):
                rows, last = rows + 1, end
                if end - start >= self.shard_bytes:
                    self.check()
                    cuts.append(
                        Shard(file=index, start=start, stop=end, first_row=first, rows=rows)
                    )
                    start, first, rows = end, first + rows, 0
        if rows:
            cuts.append(Shard(file=index, start=start, stop=last, first_row=first, rows=rows))
        return cuts


def hash_file(path: Path, check: Callable[[], None]) -> str:
    """Return the SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(SHARD_BYTES):
            check()
            digest.update(piece)
    return digest.hexdigest()


def stamp_of(name: str, path: Path) -> Stamp:
    """Return what a change of a file changes; raise TidewheelError if it is gone."""
    try:
        found = path.stat()
    except OSError as exc:
        raise TidewheelError(f"{name} cannot be read: {exc.strerror}") from exc
    return found.st_size, found.st_mtime_ns


@dataclass
class Sources:
    """The planned files as they are now."""

    plan: Plan
    stamps: dict[int, Stamp] = field(default_factory=dict)

    def verify(self, indexes: set[int], check: Callable[[], None]) -> None:
        """Hash files of the plan again; raise UsageError for one that was changed or removed."""
        for index in sorted(indexes):
            file = self.plan.files[index]
            path = Path(file.path)
            try:
                self.stamps[index] = stamp_of(file.name, path)
                digest = hash_file(path, check)
            except (OSError, TidewheelError) as exc:
                raise UsageError(f"the input {file.name} of this job is gone: {exc}") from exc
            if digest != file.sha256:
                raise UsageError(
                    f"the input {file.name} has changed since the job began: "
                    "put it back, or start another job"
                )

    def check(self, index: int) -> None:
        """Raise TidewheelError if a file was changed since it was hashed."""
        file = self.plan.files[index]
        before = self.stamps.get(index, (file.bytes, file.modified_ns))
        if stamp_of(file.name, Path(file.path)) != before:
            raise TidewheelError(f"the input {file.name} was changed during the job")
