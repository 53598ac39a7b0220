"""The plan of a job: every input file hashed and cut into shards, and later compared with it."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

from streams.batch.records.rows import RowProblem
from streams.batch.records.specification import InputFormat, Named, Plan, PlannedFile, Shard
from streams.batch.sources.places import Stamp, open_binary, stamp_of
from streams.batch.sources.tables import KINDS, opened_input
from streams.batch.sources.text import header_of, rows_in
from streams.contract.errors import TidewheelError, UsageError

SHARD_ROWS = 100_000  # of Parquet, unless one row group has more
SHARD_BYTES = 16_000_000  # of CSV and JSON Lines, and what is left of the last line
HASHED_BYTES = 1_000_000  # at once, which stay in the processor's cache


class Stopped(Exception):
    """Ctrl-C or SIGTERM came while the input was hashed."""


@dataclass(frozen=True)
class Cutter:
    """Hashes and cuts files; `check` is called between two parts of the work."""

    kind: InputFormat
    check: Callable[[], None]
    shard_rows: int = SHARD_ROWS
    shard_bytes: int = SHARD_BYTES
    whole_files: bool = False  # a file of lines is one shard

    def plan(self, files: list[Named]) -> Plan:
        """Return the plan; raise TidewheelError for a file that changes meanwhile."""
        planned: list[PlannedFile] = []
        shards: list[Shard] = []
        for index, file in enumerate(files):
            before = stamp_of(file.name, file.path)
            try:
                digest, cuts = self._cut(index, file)
            except OSError as exc:
                raise UsageError(f"{file.name} cannot be read: {exc.strerror or exc}") from exc
            if stamp_of(file.name, file.path) != before:
                raise TidewheelError(f"{file.name} was changed while it was read")
            shards += cuts
            planned.append(
                PlannedFile(
                    **dict(file),
                    sha256=digest,
                    bytes=before[0],
                    modified=before[1],
                    rows=sum(shard.rows for shard in cuts),
                )
            )
        return Plan(files=planned, shards=shards)

    def _cut(self, index: int, file: Named) -> tuple[str, list[Shard]]:
        if self.kind in KINDS:
            return hash_file(file.path, self.check), list(self._parts(index, file))
        digest = hashlib.sha256()
        cuts = self._lines(index, file, digest)
        return digest.hexdigest(), cuts

    def _parts(self, index: int, file: Named) -> Iterator[Shard]:
        begin = stop = first = rows = 0
        with opened_input(file) as table:
            parts = table.parts
        for number, size in enumerate(parts):
            if rows and rows + size > self.shard_rows:
                yield Shard(file=index, start=begin, stop=stop, first_row=first, rows=rows)
                first, rows = first + rows, 0
            begin, stop, rows = begin if rows else number, number + 1, rows + size
        if rows:
            yield Shard(file=index, start=begin, stop=stop, first_row=first, rows=rows)

    def _lines(self, index: int, named: Named, digest: "hashlib._Hash") -> list[Shard]:
        cuts: list[Shard] = []
        first = rows = 0
        with open_binary(named.path) as file:
            start = last = self._header(named, file)
            file.seek(0)
            digest.update(file.read(start))
            for end, _ in rows_in(self.kind, file, digest.update):
                rows, last = rows + 1, end
                if end - start >= self.shard_bytes and not self.whole_files:
                    self.check()
                    cuts.append(
                        Shard(file=index, start=start, stop=end, first_row=first, rows=rows)
                    )
                    start, first, rows = end, first + rows, 0
        if rows:
            cuts.append(Shard(file=index, start=start, stop=last, first_row=first, rows=rows))
        return cuts

    def _header(self, named: Named, file: IO[bytes]) -> int:
        """Return where the rows of a text file begin."""
        try:
            header_of(self.kind, file)
        except RowProblem as problem:
            raise UsageError(f"{named.name} has no header: {problem.reason}") from problem
        return file.tell()


def hash_file(path: str, check: Callable[[], None]) -> str:
    """Return the SHA-256 of a file, hex."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(HASHED_BYTES))
    with open_binary(path) as file:
        while count := file.readinto(piece):
            check()
            digest.update(piece[:count])
    return digest.hexdigest()


@dataclass
class Sources:
    """The planned files as they are now."""

    plan: Plan
    stamps: dict[int, Stamp] = field(default_factory=dict)

    def verify(self, indexes: set[int], check: Callable[[], None]) -> None:
        """Hash files of the plan again; raise UsageError for one that was changed or removed."""
        for index in sorted(indexes):
            file = self.plan.files[index]
            try:
                self.stamps[index] = stamp_of(file.name, file.path)
                digest = hash_file(file.path, check)
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
        before = self.stamps.get(index, (file.bytes, file.modified))
        if stamp_of(file.name, file.path) != before:
            raise TidewheelError(f"the input {file.name} was changed during the job")
