"""The numbered commit of a worker: effects first, position after.

    1  score the closed windows in one batch; what cannot be scored, believed or understood is
       published to `dead-letters`, and the broker's acknowledgements are waited for
    2  Delta commits: declared drops, labels, then the scored rows, each with one application
       transaction per Kafka partition
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

Labels of stored events have two steps of their own before these (label_revisions.py).
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import pyarrow as pa

from streams.contract.errors import MalformedRecord
from streams.contract.events.json_items import MAX_ROWS, placed_epoch
from streams.contract.events.labels import LabelBatch
from streams.contract.events.messages import Drop, sampled_parent
from streams.contract.events.records import ScoresForm
from streams.contract.task import Task
from streams.kafka.admin import GroupPosition
from streams.learning.teacher import Teacher
from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.tracing import OFF, Tracing
from streams.worker.commit.hole_keeper import HoleKeeper
from streams.worker.commit.label_revisions import LabelRevisions
from streams.worker.commit.messages import (
    Incoming,
    Outgoing,
    add_stored,
    dead_letters_of,
    decode,
    publications,
    sent_again,
)
from streams.worker.commit.window_reports import SlidingSums
from streams.worker.commit.work import (
    Broker,
    CommitWork,
    WindowSpans,
    publish_all,
    store_declared,
    store_scored,
)
from streams.worker.metrics import Metrics
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.tables import LABELS, SCORES
from streams.worker.windows.partition import PartitionState, StorePosition, due_windows
from streams.worker.windows.scoring_step import Batch, BatchScorer, DeviceModels
from streams.worker.windows.tumbling import Clock, Message, Window, believed_us

OVERHEAD = 3000  # bytes that a message takes beside its value: rows, window, Faust's event
LETTERS = 1000  # that may wait for a flush
FLUSH_ROWS = 16_000  # about: a flush is to end long before a rebalance gives it up

T = TypeVar("T")

log = logging.getLogger(__name__)


class Committer:
    """Owns the partitions' states and takes them through the steps, one flush at a time.

    clock: what silence is measured with, in place of `now_s`; holes: None if messages are never
    deleted.
    """

    def __init__(
        self,
        task: Task,
        teacher: Teacher,
        store: DeltaStore,
        broker: Broker,
        *,
        now_us: Callable[[], int],
        clock: Clock,
        buffer_bytes: int = 512_000_000,
        flush_rows: int = FLUSH_ROWS,
        scores: ScoresForm = "arrow",
        models: DeviceModels | None = None,
        committed: Callable[[int, int, int], None] = lambda *_: None,
        holes: HoleKeeper | None = None,
        failpoint: Failpoint = unarmed,
        metrics: Metrics | None = None,
        tracing: Tracing = OFF,
    ) -> None:
        self.lock = asyncio.Lock()  # held by a flush: partitions change between two flushes only
        self.partitions: dict[int, PartitionState] = {}
        self._labels: dict[int, PartitionState] = {}  # of `labels`: no windows, and no drops
        self.scorer = BatchScorer(task, teacher, models or DeviceModels(task), store.revisions)
        self.metrics = metrics or Metrics()
        self._task, self._store, self._broker = task, store, broker
        self._now_us, self._holes = now_us, holes
        self._committed, self._clock, self._failpoint = committed, clock, failpoint
        self._thread = ThreadPoolExecutor(1, "flush")
        self._tracing, self._scores = tracing, scores
        self._buffer_bytes, self._flush_rows = buffer_bytes, flush_rows
        self._sliding = SlidingSums(task)
        self.late_labels = LabelRevisions(task, store, broker, self._call, now_us, failpoint)
        self._dead_letters: list[tuple[Message, str, list[Outgoing]]] = []
        self.wanted = asyncio.Event()  # set when the next flush has enough to do
        self._came, self._committing_s = 0, 0.0  # rows since the last flush; its steps 2 and 3
        self.metrics.teacher(self.scorer.teacher)

    @property
    def full(self) -> bool:
        """Whether so much is buffered that no message may be taken in for now."""
        return self._crowded or len(self._dead_letters) >= LETTERS

    @property
    def behind(self) -> bool:
        """Whether another flush has work already."""
        return bool(self.scorer.ahead) or any(s.behind for s in self.partitions.values())

    @property
    def _crowded(self) -> bool:
        return sum(state.bytes for state in self._states) >= self._buffer_bytes

    @property
    def _states(self) -> list[PartitionState]:
        return [*self._labels.values(), *self.partitions.values()]

    async def assign(self, at: GroupPosition, labels: GroupPosition | None = None) -> None:
        """Own a partition of `events`, and that of `labels` with its number: position from the
        store, and its last commit is published again."""
        partition = at.partition
        position = await self._call(self._store.position, partition)
        if position.commit:
            await self._call(add_stored, self._sliding, self._store, partition)
            rows = await self._call(self._store.rows_of, partition, position.commit)
            await publish_all(self._broker, self._publications(rows))
        await self.late_labels.assigned(partition, position)
        self.scorer.restore(position)
        self.partitions[partition] = await self._state(SCORES, position, at)
        if labels is not None:
            self._labels[partition] = await self._state(LABELS, StorePosition(), labels)
        if self._holes is not None:
            await self._holes.assigned(partition, at.begin, at.committed or 0)

    async def _state(
        self, table: str, position: StorePosition, at: GroupPosition
    ) -> PartitionState:
        """Return the state of an assigned partition of the topic whose records this table has."""
        start, placed = max(at.begin, at.committed or 0), placed_epoch(at.topic_id, at.partition)
        numbers = at.partition, placed, start * MAX_ROWS
        position.placed = await self._call(self._store.placed, table, *numbers)
        return PartitionState(at.partition, position, start, placed)

    async def _call(self, function: Callable[..., T], *given: Any) -> T:
        """Run on the one thread that scores, reads and writes the store."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *given)

    def _publications(self, rows: pa.Table) -> list[Outgoing]:
        return publications(self._task, rows, self._scores, self._store.name, self._sliding)

    def revoke_all(self) -> None:
        """Forget everything: whoever owns the partitions next starts from the store."""
        self.partitions.clear()
        self._labels.clear()
        self._dead_letters.clear()
        self.scorer.clear()
        self._sliding.forget()
        self.late_labels.forget()
        if self._holes is not None:
            self._holes.forget()
        self.metrics.forget_partitions()

    def receive(self, incoming: Incoming, token: object, now_s: float) -> None:
        """Take in one message of an owned partition; never raises because of what is in it."""
        of_labels = incoming.topic == LABELS
        state = (self._labels if of_labels else self.partitions)[incoming.partition]
        if self._holes is not None and state.next_offset < incoming.offset and not of_labels:
            self._holes.jumped(incoming.partition, state.next_offset, incoming.offset)
        message = state.track(incoming.offset, token, len(incoming.value or b"") + OVERHEAD)
        if message is None:
            return
        if self._tracing.on:
            message.trace = sampled_parent(incoming.headers)
        try:
            records = decode(self._task, incoming, state.placed, self._now_us())
        except MalformedRecord as exc:
            log.debug("message %d/%d: %s", incoming.partition, incoming.offset, exc)
            message.unsealed = 1
            parked = dead_letters_of(self._task, incoming, exc)
            self._dead_letters.append((message, exc.reason, parked))
            return
        at_s, message.again = self._clock.heard(incoming.partition, now_s), sent_again(incoming)
        most = believed_us(self._task, self._now_us())
        for found in records:
            if isinstance(found, Drop):
                state.add_drop(message, found)
            elif isinstance(found, LabelBatch):
                state.add_labels(message, found)
                for each in self.partitions.values():
                    each.label(found)
            else:
                state.add_events(self._task, message, found, at_s, believed_us=most)
        self._came += message.unsealed
        if self._came >= self._flush_rows:
            self.wanted.set()

    async def flush(self, now_s: float) -> int:
        """Take what is due through the steps; return how many rows were sealed."""
        async with self.lock:
            if self.scorer.take_offer():
                self.metrics.teacher(self.scorer.teacher)
            if self._holes is not None:
                await self._holes.look()
            for window, revision in (await self.late_labels.revise(self._positions())).items():
                self.scorer.reported(window, revision)
            work = self._collect(now_s)
            if work:
                spans = WindowSpans(self._tracing)
                batch = await self._score(work, now_s)  # step 1
                spans.scored(batch)
                self._failpoint("worker-step-1")
                scored = time.monotonic()
                rows = await self._call(self._stored, work, batch)  # step 2
                spans.note("stored")
                self._failpoint("worker-step-2")
                if rows is not None:
                    messages = await self._call(self._publications, rows)
                    await publish_all(self._broker, spans.marked(messages))  # step 3
                    spans.end()
                self._failpoint("worker-step-3")
                self._seal(work, batch)
                for partition, drops in work.lost.items():
                    await cast(HoleKeeper, self._holes).declared(partition, drops)
                self._committing_s = time.monotonic() - scored
                self.metrics.commit(self._committing_s)
            await self._acknowledge()  # steps 4 and 5
            self._after(work)
            return sum(window.rows for window in work.windows)

    def _due(self, now_s: float) -> list[Window]:
        self._came = 0
        self.wanted.clear()
        heard_s = {p: self._clock.listened(p, now_s) for p in self.partitions}
        return due_windows(self.partitions, heard_s, self._flush_rows)

    def _collect(self, now_s: float) -> CommitWork:
        work = CommitWork(windows=self.scorer.ahead or self._due(now_s))
        for state in self._states:
            work.take(state)
        if self._holes is not None:
            work.lost = self._holes.due(self.partitions)
        for partition, drops in work.lost.items():
            declared = self.partitions[partition].add_lost(drops)
            work.drops += [(partition, each) for each in declared]
        if self._crowded and not work.windows:  # no window is due: close early, and revise later
            for state in self.partitions.values():
                work.windows += state.relieve()
        waiting, self._dead_letters = self._dead_letters, []
        for message, reason, found in waiting:
            work.dead_letters += found
            work.malformed.append(message)
            self.metrics.dead_letter(reason)
        if waiting:
            log.warning("%d malformed messages go to dead-letters", len(waiting))
        return work

    async def _score(self, work: CommitWork, now_s: float) -> Batch:
        """Step 1; if another flush has enough to do, the evaluation of its windows begins, unless
        evaluations are short beside commits: two threads at work cost more than they gain then."""
        found = await self.scorer.evaluate(work.windows)
        enough = self.wanted.is_set() or self.behind
        if enough and found.took_s > self._committing_s and (windows := self._due(now_s)):
            self.scorer.look_ahead(windows)
        batch = await self._call(self.scorer.report, found, self._positions())
        self.metrics.scoring(batch.took_s)
        work.refuse(self._task, self.partitions, batch)
        for reason in work.parked:
            self.metrics.dead_letter(reason)
        await publish_all(self._broker, work.dead_letters)
        return batch

    def _positions(self) -> dict[int, StorePosition]:
        return {partition: state.position for partition, state in self.partitions.items()}

    def _stored(self, work: CommitWork, batch: Batch) -> pa.Table | None:
        """Step 2; the rows that were stored."""
        positions = self._positions()
        store_declared(self._store, positions, work, self._now_us())
        return store_scored(self._task, self._store, positions, batch)

    def _seal(self, work: CommitWork, batch: Batch) -> None:
        self.scorer.sealed(batch.scored, self._positions())
        self.late_labels.reported(batch.scored)
        work.seal(self.partitions)
        work.count(batch, self.metrics)

    async def _acknowledge(self) -> None:
        done = [m for state in self._states for m in state.acknowledgeable()]
        if not done:
            return
        await self._broker.acknowledge(done)  # step 4
        self._failpoint("worker-step-4")
        await self._broker.commit_offsets()  # step 5
        self._failpoint("worker-step-5")

    def _after(self, work: CommitWork) -> None:
        for partition, files in work.files(self._task).items():
            self._committed(partition, self.partitions[partition].position.commit, files)
        states = self.partitions.values()
        self.metrics.buffered(sum(s.rows for s in states), sum(s.in_flight for s in states))
        self.metrics.labels_waiting(self.late_labels.waiting(self._positions()))
        now_us = self._now_us()
        self.metrics.watermark_delay(max((s.delay_us(now_us) for s in states), default=0) / 1e6)
        self.metrics.flushed()
