"""The plan of a job: every input file cut into shards and hashed, and later compared with it. Files
of lines are hashed as they are cut, tables beside the scoring."""

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import IO

from crc32c import CRC32CHash
from msgspec import structs

from streams.batch.progress import Plan, PlannedFile, Shard
from streams.batch.rows import RowProblem
from streams.batch.sources.places import ONLY_TIME, Stamp, open_binary, stamp_of
from streams.batch.sources.tables import KINDS, opened_input
from streams.batch.sources.text import header_of, rows_in
from streams.batch.specification import InputFormat, Named
from streams.contract.errors import TidewheelError, UsageError

SHARD_ROWS = 100_000  # of Parquet, unless one row group has more
FIRST_ROWS = 10_000  # of the first shard, twice as many of each next: what is wrong is seen soon
SHARD_BYTES = 16_000_000  # of CSV and JSON Lines, and what is left of the last line
HASHED_BYTES = 1_000_000  # at once, which stay in the processor's cache
LOOK_S = 0.2  # between two looks whether to stop


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
                digest, cuts = self._cut(index, file, len(shards))
            except OSError as exc:
                raise UsageError(f"{file.name} cannot be read: {exc.strerror or exc}") from exc
            if stamp_of(file.name, file.path) != before:
                raise TidewheelError(f"{file.name} was changed while it was read")
            shards += cuts
            planned.append(
                PlannedFile(
                    **structs.asdict(file),
                    crc32c=digest,
                    bytes=before[0],
                    modified=before[1],
                    rows=sum(shard.rows for shard in cuts),
                )
            )
        return Plan(files=planned, shards=shards)

    def _cut(self, index: int, file: Named, before: int) -> tuple[str, list[Shard]]:
        if self.kind in KINDS:
            return "", list(self._parts(index, file, before))
        digest = CRC32CHash()
        cuts = self._lines(index, file, digest)
        return str(digest.hexdigest()), cuts

    def _parts(self, index: int, file: Named, before: int) -> Iterator[Shard]:
        begin = stop = first = rows = 0
        with opened_input(file) as table:
            parts = table.parts
        for number, size in enumerate(parts):
            if rows and rows + size > min(self.shard_rows, FIRST_ROWS << min(before, 20)):
                yield Shard(file=index, start=begin, stop=stop, first_row=first, rows=rows)
                first, rows, before = first + rows, 0, before + 1
            begin, stop, rows = begin if rows else number, number + 1, rows + size
        if rows:
            yield Shard(file=index, start=begin, stop=stop, first_row=first, rows=rows)

    def _lines(self, index: int, named: Named, digest: CRC32CHash) -> list[Shard]:
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
    """Return the CRC-32C (RFC 3720) of a file, eight hexadecimal digits."""
    digest, piece = CRC32CHash(), memoryview(bytearray(HASHED_BYTES))
    with open_binary(path) as file:
        while count := file.readinto(piece):
            check()
            digest.update(piece[:count])
    return str(digest.hexdigest())


@dataclass
class Sources:
    """The planned files as they are now; `settled` says when they are known to be the plan's."""

    plan: Plan
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "hash"))
    _sums: Future[Plan] | None = None
    _closed: bool = False

    def begin(self, indexes: Collection[int]) -> None:
        """Hash files on a thread, to fill in sums or to compare them with the plan's."""
        self._sums = self._threads.submit(self._hashed, indexes)

    def settled(self, check: Callable[[], None]) -> Plan:
        """Wait until the files are hashed; return the plan with all sums. Raise TidewheelError for
        a file that was changed meanwhile, UsageError for one that is not the plan's."""
        while self._sums is not None:
            check()
            if wait([self._sums], LOOK_S).done:
                self.plan, self._sums = self._sums.result(), None
        return self.plan

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._threads.shutdown()

    def _hashed(self, indexes: Collection[int]) -> Plan:
        files = list(self.plan.files)
        for index in sorted(indexes):
            digest = self._digest(index, self._go_on)
            self.check(index)
            files[index] = files[index].replace(crc32c=digest)
        return self.plan if files == self.plan.files else self.plan.replace(files=files)

    def _go_on(self) -> None:
        if self._closed:
            raise Stopped

    def look(self, indexes: Collection[int]) -> dict[int, Stamp]:
        """Return what files of the plan are now; raise UsageError for one that is removed."""
        found = {}
        for index in sorted(indexes):
            file = self.plan.files[index]
            try:
                found[index] = stamp_of(file.name, file.path)
            except TidewheelError as exc:
                raise UsageError(f"the input {file.name} of this job is gone: {exc}") from exc
        return found

    def verify(self, indexes: set[int], check: Callable[[], None]) -> Plan:
        """Hash those files of the plan again that were touched, and begin to hash those of whose
        store nothing but a time is known; return the plan as the files are now. Raise UsageError
        for one that was changed or removed."""
        files, touched, uncertain = list(self.plan.files), False, set[int]()
        for index, (size, modified) in self.look(indexes).items():
            if (size, modified) != (files[index].bytes, files[index].modified):
                self._digest(index, check)
                files[index] = files[index].replace(bytes=size, modified=modified)
                touched = True
            elif modified.startswith(ONLY_TIME):
                uncertain.add(index)
        if touched:
            self.plan = self.plan.replace(files=files)
        self.begin(uncertain)
        return self.plan

    def _digest(self, index: int, check: Callable[[], None]) -> str:
        """Return a file's sum; raise UsageError if it is not the plan's."""
        file = self.plan.files[index]
        try:
            digest = hash_file(file.path, check)
        except OSError as exc:
            raise UsageError(f"{file.name} cannot be read: {exc.strerror or exc}") from exc
        if file.crc32c and digest != file.crc32c:
            raise UsageError(
                f"the input {file.name} has changed since the job began: "
                "put it back, or start another job"
            )
        return digest

    def check(self, index: int) -> None:
        """Raise TidewheelError if a file was changed since it was planned."""
        file = self.plan.files[index]
        if stamp_of(file.name, file.path) != (file.bytes, file.modified):
            raise TidewheelError(
                f"the input {file.name} was changed during the job: put it back before you resume, "
                "or start another job"
            )
