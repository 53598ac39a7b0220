"""The rows of a shard, whatever they are cut from, and their windows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from streams.batch.recordings.readings import carry_path, read_readings
from streams.batch.records.documents import Columns, Plan, Specification
from streams.batch.records.rows import Rows, Taught
from streams.batch.sources.inputs import read_shard
from streams.batch.sources.text import MAX_LINE_BYTES
from streams.batch.windows.windows import MADE, Key, Keyed, keys_of, taught, with_keys
from streams.contract.task import Task

if TYPE_CHECKING:
    from streams.learning.teacher import Teacher


@dataclass(frozen=True)
class ShardRows:
    """Reads the shards of one job; `folder` is the job's."""

    folder: Path
    specification: Specification
    task: Task
    max_bytes: int = MAX_LINE_BYTES

    def rows(self, plan: Plan, number: int) -> Iterator[Rows]:
        """Yield the rows of a shard in batches."""
        return self._read(plan, number, self.specification.columns)

    def keys(self, plan: Plan, number: int) -> Iterator[Key]:
        """Yield the keys of a shard's rows that have one."""
        for _, keys, _ in self._keyed(plan, number):
            yield from (key for key in keys if key is not None)

    def taught(
        self, plan: Plan, number: int, teacher: "Teacher", between: Callable[[], None]
    ) -> Iterator[tuple[Rows, Taught]]:
        """Yield the rows of a shard with the outputs of a teacher."""
        low, high = plan.shards[number].around or (number, number)
        others = (
            (other, part)
            for other in range(low, high + 1)
            if other != number
            for part in self._keyed(plan, other)
        )
        own = list(self._keyed(plan, number))
        kept = self.specification.columns.keep
        for rows, found in taught(self.task, teacher, own, number, others, between):
            if self._files:
                rows = replace(rows, kept={name: rows.kept[name] for name in kept})
            yield rows, found

    @property
    def _files(self) -> bool:
        """Whether the device and the time of a row are columns of the input."""
        return self.specification.settings.rows == "segments"

    def _keyed(self, plan: Plan, number: int) -> Iterator[Keyed]:
        columns, named = self.specification.columns, MADE
        if self._files:
            assert columns.selection.time is not None
            named = columns.device, columns.selection.time
            columns = with_keys(columns)
        stem = PurePosixPath(plan.files[plan.shards[number].file].name).stem
        for rows in self._read(plan, number, columns):
            yield (rows, *keys_of(self.task, rows, named, stem))

    def _read(self, plan: Plan, number: int, columns: Columns) -> Iterator[Rows]:
        shard, kind = plan.shards[number], self.specification.input_format
        file = plan.files[shard.file]
        if self.specification.settings.rows == "segments":
            return read_shard(self.task, kind, file, shard, columns, self.max_bytes)
        carry = carry_path(self.folder, number)
        return read_readings(self.task, kind, file, shard, columns, carry, self.max_bytes)
