"""The numbered commit of a worker: effects first, position after.

    1  score the closed windows in one batch; what cannot be scored or understood is published to
       `dead-letters`, and the broker's acknowledgements are waited for
    2  Delta commit: declared drops, then the scored rows, each with one application transaction per
       Kafka partition
    3  publish to `scores` and `windows` and wait for the broker's acknowledgements
    4  acknowledge the messages whose rows are all sealed, in offset order without a gap
    5  commit offsets

What a restart does after a crash at the end of each step:

    1  nothing is stored: the messages come again and their windows are scored again; the dead
       letters are there twice
    2  the rows are in the store: the assignment publishes the rows of the partition's last commit
       from there; the messages come again and find their rows sealed
    3  as after 2; the publications are there twice, with the same content and key
    4  acknowledgements are memory only: as after 3
    5  nothing is left to do
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa

from streams.contract.drift import Reference
from streams.contract.errors import BrokerUnavailable, MalformedRecord
from streams.contract.records import Drop
from streams.contract.task import Task
from streams.worker import letters
from streams.worker.drift import DriftWatch
from streams.worker.failpoints import Failpoint, unarmed
from streams.worker.letters import Incoming
from streams.worker.partition import DeclaredDrop, PartitionState
from streams.worker.reports import Outgoing, publications
from streams.worker.rows import ScoredWindow, score_rows, segments_of_window
from streams.worker.scoring import Teacher, TeacherFailed
from streams.worker.store import DROPS, SCORES, TEACHER_FAILED, Store, drop_rows
from streams.worker.windows import Message, Window

AT_ONCE = 2000  # messages: a publication that times out is repeated whole
RECENT = 50_000  # windows whose number of reports is remembered

log = logging.getLogger(__name__)


class Broker(Protocol):
    """What a commit needs of Kafka."""

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Send, and return when the broker has all; BrokerUnavailable when it is away."""
        ...

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        """Acknowledge messages, in the order given."""
        ...

    async def commit_offsets(self) -> None: ...


@dataclass
class Work:
    """What one flush takes from the partitions, and what becomes of it."""

    windows: list[Window] = field(default_factory=list)
    drops: list[tuple[int, DeclaredDrop]] = field(default_factory=list)
    letters: list[Outgoing] = field(default_factory=list)
    parked: list[Message] = field(default_factory=list)
    scored: list[ScoredWindow] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.windows or self.drops or self.letters)


class Committer:
    """Owns the partitions' states and takes them through the steps, one flush at a time."""

    def __init__(
        self,
        task: Task,
        teacher: Teacher,
        store: Store,
        broker: Broker,
        *,
        now_us: Callable[[], int],
        reference: Reference | None = None,
        buffer_bytes: int = 512_000_000,
        failpoint: Failpoint = unarmed,
    ) -> None:
        channels, samples = task.segment_shape
        self.lock = asyncio.Lock()  # held by a flush: partitions change between two flushes only
        self.partitions: dict[int, PartitionState] = {}
        self._task, self._teacher, self._store, self._broker = task, teacher, store, broker
        self._now_us = now_us
        self._drift = None if reference is None else DriftWatch(task, reference)
        self._failpoint = failpoint
        self._max_rows = max(1000, buffer_bytes // (4 * channels * samples + 8 * task.outputs + 64))
        self._letters: list[tuple[Message, list[Outgoing]]] = []
        self._reports: OrderedDict[tuple[str, int], int] = OrderedDict()

    @property
    def full(self) -> bool:
        """Whether so much is buffered that no message may be taken in for now."""
        return self._crowded or len(self._letters) >= 1000

    @property
    def _crowded(self) -> bool:
        return sum(state.rows for state in self.partitions.values()) >= self._max_rows

    async def assign(self, partition: int) -> None:
        """Own `partition`: position from the store, and its last commit is published again."""
        position = await asyncio.to_thread(self._store.position, partition)
        if position.commit:
            rows = await asyncio.to_thread(self._store.rows_of, partition, position.commit)
            await self._publish(publications(self._task, rows))
        if self._drift is not None:
            self._drift.restore(position.drift)
        position.drift.clear()
        self.partitions[partition] = PartitionState(self._task, partition, position)

    def revoke_all(self) -> None:
        """Forget everything: whoever owns the partitions next starts from the store."""
        self.partitions.clear()
        self._letters.clear()
        self._reports.clear()
        if self._drift is not None:
            self._drift.clear()

    def receive(self, incoming: Incoming, token: object, now_s: float) -> None:
        """Take in one message of an owned partition; never raises because of what is in it."""
        state = self.partitions[incoming.partition]
        message = state.track(incoming.offset, token)
        if message is None:
            return
        try:
            record = letters.read(self._task, incoming)
        except MalformedRecord as exc:
            log.debug("message %d/%d: %s", incoming.partition, incoming.offset, exc)
            message.unsealed = 1
            self._letters.append((message, letters.of_message(self._task, incoming, exc)))
            return
        if isinstance(record, Drop):
            state.add_drop(message, record)
        else:
            state.add_events(message, record, now_s)

    async def flush(self, now_s: float) -> int:
        """Take what is due through the steps; return how many rows were sealed."""
        async with self.lock:
            work = self._collect(now_s)
            if work:
                await self._score(work)  # step 1
                self._failpoint("worker-step-1")
                rows = await asyncio.to_thread(self._store_work, work)  # step 2
                self._failpoint("worker-step-2")
                if rows is not None:
                    messages = await asyncio.to_thread(publications, self._task, rows)
                    await self._publish(messages)  # step 3
                self._failpoint("worker-step-3")
                self._seal(work)
            await self._acknowledge()  # steps 4 and 5
            return sum(window.rows for window in work.windows)

    def _collect(self, now_s: float) -> Work:
        work = Work()
        for partition, state in self.partitions.items():
            work.windows += state.close(now_s)
            work.drops += [(partition, declared) for declared in state.take_drops()]
        if self._crowded and not work.windows:  # no window is due: close early, and revise later
            for state in self.partitions.values():
                work.windows += state.close(now_s, everything=True)
        waiting, self._letters = self._letters, []
        for message, found in waiting:
            work.letters += found
            work.parked.append(message)
        if waiting:
            log.warning("%d malformed messages go to dead-letters", len(waiting))
        return work

    async def _score(self, work: Work) -> None:
        """Step 1."""
        results = await asyncio.to_thread(self._teacher_scores, work.windows)
        revisions = await asyncio.to_thread(self._revisions, work.windows)
        await asyncio.to_thread(self._take_scores, work, results, revisions)
        await self._publish(work.letters)

    def _take_scores(
        self,
        work: Work,
        results: Sequence[np.ndarray | TeacherFailed | None],
        revisions: Mapping[tuple[str, int], int],
    ) -> None:
        """What the store is to have of the windows; those that the teacher fails on are parked."""
        for window, result in zip(work.windows, results, strict=True):
            if isinstance(result, TeacherFailed):
                self._park(work, window, str(result))
                continue
            commit = self.partitions[window.partition].position.commit + 1
            revision = revisions[window.device, window.start]
            drift = None if self._drift is None else self._drift.observe(window)
            work.scored.append(ScoredWindow(window, result, revision, commit, drift))

    def _teacher_scores(self, windows: list[Window]) -> Sequence[np.ndarray | TeacherFailed | None]:
        if self._task.upload != "segment":
            return [None] * len(windows)
        return self._teacher.score([segments_of_window(self._task, w) for w in windows])

    def _park(self, work: Work, window: Window, detail: str) -> None:
        """Events that the teacher fails on: kept on `dead-letters`, and counted as dropped."""
        log.warning("window %s/%d: %s: %s", window.device, window.start, TEACHER_FAILED, detail)
        for piece in window.pieces:
            work.letters += letters.of_piece(
                self._task, window.partition, piece, TEACHER_FAILED, detail
            )
            work.drops += [
                (window.partition, DeclaredDrop(None, drop))
                for drop in self.partitions[window.partition].undeclared(piece, TEACHER_FAILED)
            ]

    def _revisions(self, windows: Iterable[Window]) -> dict[tuple[str, int], int]:
        """How many reports each window has already."""
        found: dict[tuple[str, int], int] = {}
        unknown: dict[int, list[tuple[str, int]]] = {}
        for window in windows:
            key = window.device, window.start
            newest = self.partitions[window.partition].position.newest
            if key in self._reports:
                found[key] = self._reports[key]
            elif window.start > newest.get(window.device, -1):
                found[key] = 0
            else:
                unknown.setdefault(window.partition, []).append(key)
        for partition, keys in unknown.items():
            found.update(self._store.revisions(partition, keys))
        return found

    def _store_work(self, work: Work) -> pa.Table | None:
        """Step 2; the rows that were stored."""
        if work.drops:
            touched = {partition for partition, _ in work.drops}
            versions = {p: self.partitions[p].position.drops_commit + 1 for p in touched}
            rows = drop_rows(work.drops, versions, self._now_us())
            self._store.commit(DROPS, rows, versions)
            for partition, version in versions.items():
                self.partitions[partition].position.drops_commit = version
        if not work.scored:
            return None
        rows = score_rows(self._task, self._teacher.name, work.scored)
        versions = {one.window.partition: one.commit for one in work.scored}
        self._store.commit(SCORES, rows, versions)
        for partition, version in versions.items():
            self.partitions[partition].position.commit = version
        return rows

    async def _publish(self, messages: Sequence[Outgoing]) -> None:
        """Send until the broker has all: what is in the store is not to be withheld."""
        wait_s, at = 0.25, 0
        while at < len(messages):
            try:
                await self._broker.publish(messages[at : at + AT_ONCE])
                wait_s, at = 0.25, at + AT_ONCE
            except BrokerUnavailable as exc:
                wait_s = min(2 * wait_s, 5.0)
                log.warning("%s; trying again in %.1f s", exc, wait_s)
                await asyncio.sleep(wait_s)

    def _seal(self, work: Work) -> None:
        for one in work.scored:
            key = one.window.device, one.window.start
            self._reports[key] = one.revision + 1
            self._reports.move_to_end(key)
            newest = self.partitions[one.window.partition].position.newest
            newest[one.window.device] = max(newest.get(one.window.device, -1), one.window.start)
        while len(self._reports) > RECENT:
            self._reports.popitem(last=False)
        for window in work.windows:
            self.partitions[window.partition].seal(window.pieces)
        for partition, declared in work.drops:
            self.partitions[partition].seal((), [declared])
        for message in work.parked:
            message.unsealed = 0

    async def _acknowledge(self) -> None:
        done = [m for state in self.partitions.values() for m in state.acknowledgeable()]
        if not done:
            return
        await self._broker.acknowledge(done)  # step 4
        self._failpoint("worker-step-4")
        await self._broker.commit_offsets()  # step 5
        self._failpoint("worker-step-5")
