"""A broker and a store in memory, behind the seams of the worker's commit."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from streams.contract.accounting import IntervalSet
from streams.contract.errors import BrokerUnavailable, PartitionLost
from streams.contract.events.json_items import PLACED
from streams.contract.events.labels import LabelBatch
from streams.contract.events.messages import Drop, Headers
from streams.contract.events.records import EventBatch
from streams.contract.task import Task
from streams.kafka.admin import GroupPosition
from streams.learning.drift_reference import Reference
from streams.learning.teacher import TeacherFailed
from streams.worker.commit.committer import Committer
from streams.worker.commit.messages import Incoming, Outgoing
from streams.worker.store.position import REFUSED
from streams.worker.store.tables import DROPS, LABELS, REVISED, SCHEMAS, SCORES
from streams.worker.windows.partition import StorePosition
from streams.worker.windows.tumbling import Message
from tests.rig.made_up.killed import Killed
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.workers import encoded

LATER = 1e9  # every device has been silent by then


@dataclass
class Log:
    """One partition of `events` and that of `labels`, the group's committed offsets, and what was
    published."""

    messages: list[tuple[bytes | None, bytes | None, Headers]] = field(default_factory=list)
    labels: list[tuple[bytes | None, bytes]] = field(default_factory=list)
    committed: int = 0
    labels_committed: int = 0
    published: list[Outgoing] = field(default_factory=list)
    away: int = 0  # how many calls find no broker
    on_commit: Callable[[int], None] = lambda offset: None
    _acknowledged: int = 0
    _labels_acknowledged: int = 0

    def append(self, record: EventBatch | Drop | LabelBatch) -> None:
        self.messages.append(encoded(record))

    def incoming(self, offset: int) -> Incoming:
        return Incoming(0, offset, *self.messages[offset])

    def incoming_label(self, offset: int) -> Incoming:
        return Incoming(0, offset, *self.labels[offset], [], LABELS)

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        if self.away:
            self.away -= 1
            raise BrokerUnavailable("away")
        await asyncio.sleep(0)
        self.published += messages

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if message.token == LABELS:
                self._labels_acknowledged = message.offset + 1
            else:
                self._acknowledged = message.offset + 1

    async def commit_offsets(self) -> None:
        self.on_commit(self._acknowledged)
        self.committed = self._acknowledged
        self.labels_committed = self._labels_acknowledged


class MemoryStore:
    """store.Store's methods over lists."""

    def __init__(self) -> None:
        self.tables = {name: schema().empty_table() for name, schema in SCHEMAS.items()}
        self.versions: dict[tuple[str, int], int] = {}
        self.marks: dict[str, int] = {}
        self.name = "memory"

    def _rows(self, table: str, *columns: str) -> list[dict[str, Any]]:
        return self.tables[table].select(columns).to_pylist()

    def position(self, partition: int) -> StorePosition:
        commits = Counter({name: n for (name, of), n in self.versions.items() if of == partition})
        position = StorePosition(commits)
        for row in self._rows(LABELS, "device", "epoch", "number"):
            if row["epoch"].startswith(PLACED):
                continue
            known = position.labelled.setdefault((row["device"], row["epoch"]), IntervalSet())
            known.add(row["number"])
        drops = self._rows(DROPS, "device", "epoch", "first", "last", "reason")
        refused = [row for row in drops if row["reason"] in REFUSED]
        for row in self._rows(SCORES, "device", "epoch", "seq"):
            if row["epoch"].startswith(PLACED) and not any(
                (row["device"], row["epoch"]) == (drop["device"], drop["epoch"])
                and drop["first"] <= row["seq"] <= drop["last"]
                for drop in refused
            ):
                continue
            sets = position.taken.setdefault((row["device"], row["epoch"]), IntervalSet())
            sets.add(row["seq"])
        scores = self.tables[SCORES]
        windows, times = scores.column("window").cast("int64"), scores.column("time").cast("int64")
        for device, start, time in zip(
            scores.column("device").to_pylist(), windows.to_pylist(), times.to_pylist(), strict=True
        ):
            position.newest[device] = max(position.newest.get(device, -1), start)
            position.watermark[device] = max(position.watermark.get(device, -1), time)
        for row in sorted(
            self._rows(SCORES, "device", "window", "revision", "drift"),
            key=lambda r: (r["window"], r["revision"]),
        ):
            if row["drift"] is not None:
                start = round(row["window"].timestamp() * 1e6)
                position.drift.setdefault(row["device"], []).append((start, row["drift"]))
        for row in drops:
            source, span = (row["device"], row["epoch"]), (row["first"], row["last"])
            position.dropped.setdefault(source, IntervalSet()).add(*span)
            if row["reason"] in REFUSED:
                scored = IntervalSet(position.taken.get(source, ()))
                position.taken.setdefault(source, IntervalSet()).add(*span)
                position.refused.setdefault(source, IntervalSet()).add(*span)
                for first, last in scored:
                    position.refused[source].remove(first, last)
        return position

    def placed(self, table: str, partition: int, epoch: str, since: int) -> IntervalSet:
        name = "seq" if table == SCORES else "number"
        rows = self._rows(table, "epoch", name)
        seqs = [row[name] for row in rows if row["epoch"] == epoch and row[name] >= since]
        return IntervalSet((seq, seq) for seq in sorted(seqs))

    def revisions(
        self, partition: int, keys: Sequence[tuple[str, int]]
    ) -> dict[tuple[str, int], int]:
        seen: dict[tuple[str, int], set[int]] = {key: set() for key in keys}
        for table in (SCORES, REVISED):
            names = self.tables[table].select(["device", "window", "revision"])
            starts = names.column("window").cast("int64").to_pylist()
            for row, start in zip(names.to_pylist(), starts, strict=True):
                seen.setdefault((row["device"], start), set()).add(row["revision"])
        return {key: len(seen[key]) for key in keys}

    def twin(self) -> "MemoryStore":
        return self

    def rows(self, table: str) -> ds.Dataset:
        return ds.dataset(self.tables[table])

    def revised(self, partition: int, commit: int) -> pa.Table:
        table = self.tables[REVISED]
        return table.filter(pa.compute.equal(table.column("commit"), commit))

    def last_commit(self, table: str, partition: int) -> int:
        return self.versions.get((table, partition), 0)

    def mark(self, table: str, name: str) -> int:
        return self.marks.get(name, 0)

    def rows_of(self, partition: int, commit: int) -> pa.Table:
        table = self.tables[SCORES]
        return table.filter(pa.compute.equal(table.column("commit"), commit))

    def latest_rows(self, partition: int, span_us: int) -> pa.Table:
        table, position = self.tables[SCORES], self.position(partition)
        starts = zip(
            table.column("device").to_pylist(),
            table.column("window").cast("int64").to_pylist(),
            strict=True,
        )
        return table.filter([start > position.newest[d] - span_us for d, start in starts])

    def commit(
        self,
        table: str,
        rows: pa.Table,
        versions: Mapping[int, int],
        marks: Mapping[str, int] | None = None,
    ) -> None:
        for partition, version in versions.items():
            if self.versions.get((table, partition), 0) != version - 1:
                raise PartitionLost("another")
            self.versions[table, partition] = version
        self.marks |= marks or {}
        self.tables[table] = pa.concat_tables([self.tables[table], rows])


class Doubler:
    """A teacher that answers with ones, and fails on windows of a chosen size."""

    def __init__(
        self,
        task: Task,
        fails_on: int = 0,
        reference: Reference | None = None,
        name: str = "1-teacher",
    ) -> None:
        self._outputs, self._fails_on = task.outputs, fails_on
        self.reference, self.name = reference, name

    def score(self, windows: Sequence[np.ndarray]) -> list[np.ndarray | TeacherFailed]:
        return [
            TeacherFailed("no")
            if len(window) == self._fails_on
            else np.ones((len(window), self._outputs), np.float32)
            for window in windows
        ]


class CallersClock:
    """A clock for which messages can always come."""

    def heard(self, _partition: int, now_s: float) -> float:
        return now_s

    def listened(self, _partition: int, now_s: float) -> float:
        return now_s


def live(log: Log, store: object, *now_s: float, of: Task = tiny, **options: Any) -> None:
    """The life of a process: it owns the partition, takes in all messages from the committed offset
    on, and flushes at these times. It looks at no labels of stored events: a look would go on in
    its thread after this life, beside the next ones; commit/test_label_revisions.py has looks."""

    async def life() -> None:
        made = committer(of, log, store, **options)
        labels = GroupPosition(0, 0, 0, log.labels_committed)
        await made.assign(GroupPosition(0, 0, 0, log.committed), labels)
        made.late_labels.forget()
        for offset in range(log.labels_committed, len(log.labels)):
            made.receive(log.incoming_label(offset), LABELS, 0.0)
        for offset in range(log.committed, len(log.messages)):
            made.receive(log.incoming(offset), offset, 0.0)
        for at_s in now_s:
            await made.flush(at_s)
            while made.behind:
                await made.flush(at_s)

    asyncio.run(life())


def committer(
    task: Task,
    log: Log,
    store: object,
    *,
    teacher: Any = None,
    fails_on: int = 0,
    crash_at: str = "",
    reference: Reference | None = None,
    now_us: int = 0,
    **options: int,
) -> Committer:
    """A worker's committer; it is Killed at the end of the step `crash_at`."""

    def failpoint(point: str) -> None:
        if point == crash_at:
            raise Killed

    return Committer(
        task,
        teacher or Doubler(task, fails_on, reference),
        store,  # type: ignore[arg-type]
        log,
        now_us=lambda: now_us,
        clock=CallersClock(),
        failpoint=failpoint,
        **options,
    )
