"""What a commit needs of Kafka, what one flush takes through its steps, the steps that store and
publish it, and their traces."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from streams.contract.documents import YEAR_1980_US
from streams.contract.errors import BrokerUnavailable
from streams.contract.events.messages import SEQ_REUSED, Drop
from streams.contract.task import Task
from streams.runtime.tracing import About, Span, Tracing
from streams.worker.commit.messages import Outgoing, refused_letters
from streams.worker.metrics import Metrics
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.position import FROM_THE_FUTURE, TEACHER_FAILED
from streams.worker.store.tables import DROPS, LABELS, SCORES, drop_rows, label_rows
from streams.worker.windows.partition import (
    DeclaredDrop,
    NewLabels,
    PartitionState,
    StorePosition,
)
from streams.worker.windows.rows import ScoredWindow, days_of, score_rows
from streams.worker.windows.scoring_step import Batch
from streams.worker.windows.tumbling import FUTURE, Message, Window, WindowSlice

AT_ONCE = 2000  # messages: a publication that times out is repeated whole

LINKS = 128  # of a span; OpenTelemetry's own limit

Report = tuple[str, int, int]  # device, window, revision
Positions = Mapping[int, StorePosition]
RowsOf = Callable[[Any, Mapping[int, int], int], pa.Table]

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
class CommitWork:
    """What one flush takes from the partitions, and what becomes of it."""

    windows: list[Window] = field(default_factory=list)
    drops: list[tuple[int, DeclaredDrop]] = field(default_factory=list)
    labels: list[tuple[int, NewLabels]] = field(default_factory=list)
    unbelieved: list[tuple[int, WindowSlice]] = field(default_factory=list)
    dead_letters: list[Outgoing] = field(default_factory=list)
    parked: list[str] = field(default_factory=list)  # the reasons of refused events
    malformed: list[Message] = field(default_factory=list)
    lost: dict[int, list[Drop]] = field(default_factory=dict)  # by partition, of a hole

    def __bool__(self) -> bool:
        taken = self.windows, self.drops, self.labels, self.unbelieved, self.dead_letters, self.lost
        return any(taken)

    def take(self, state: PartitionState) -> None:
        """Take what a partition has beside windows."""
        drops, labels, unbelieved = state.take_others()
        self.drops += [(state.partition, declared) for declared in drops]
        self.labels += [(state.partition, new) for new in labels]
        self.unbelieved += [(state.partition, piece) for piece in unbelieved]

    def refuse(self, task: Task, partitions: Mapping[int, PartitionState], batch: Batch) -> None:
        """Park what is not believed and what could not be scored."""
        for partition, piece in self.unbelieved:
            reason, detail = SEQ_REUSED, "other events had these numbers; begin a new epoch"
            if piece.window == FUTURE:
                reason = FROM_THE_FUTURE
                at = pa.scalar(piece.latest_us, pa.timestamp("us")).as_py()
                detail = f"event time {at} UTC is over an hour ahead of the worker's clock"
            self.park(task, partitions[partition], piece, reason, detail)
        for window, detail in batch.failed:
            for piece in window.pieces:
                self.park(task, partitions[window.partition], piece, TEACHER_FAILED, detail)

    def seal(self, partitions: Mapping[int, PartitionState]) -> None:
        """Mark all of it as sealed."""
        for window in self.windows:
            partitions[window.partition].seal(window.pieces)
        for partition, piece in self.unbelieved:
            partitions[partition].seal((piece,))
        for _, declared in self.drops:
            if declared.message is not None:
                declared.message.unsealed -= 1
        for _, new in self.labels:
            new.message.unsealed -= 1
        for message in self.malformed:
            message.unsealed = 0

    def files(self, task: Task) -> Counter[int]:
        """Return how many files of `scores` the windows make, by partition: one a day."""
        days = days_of(task, np.array([window.start for window in self.windows], np.int64))
        return Counter(
            p
            for p, _ in {(w.partition, d) for w, d in zip(self.windows, days.tolist(), strict=True)}
        )

    def count(self, batch: Batch, metrics: Metrics) -> None:
        """Count what was sealed."""
        for _, declared in self.drops:
            metrics.dropped(declared.drop.reason, declared.drop.last - declared.drop.first + 1)
        metrics.labelled(sum(new.labels.rows.num_rows for _, new in self.labels))
        if early := sorted({w.device for w in self.windows if w.start < YEAR_1980_US}):
            text = "events before 1980 of %s (devices: %d): times are microseconds since 1970"
            log.warning(text, early[0], len(early))
        late = sum(one.revision > 0 for one in batch.scored)
        metrics.rows_sealed(sum(one.window.rows for one in batch.scored))
        metrics.window_reported(False, len(batch.scored) - late)
        metrics.window_reported(True, late)

    def park(
        self, task: Task, state: PartitionState, piece: WindowSlice, reason: str, detail: str
    ) -> None:
        """Refuse events: they are kept on `dead-letters`, and counted as dropped, if they count."""
        events = piece.events
        of = f"{reason}: events of {events.device}"  # numbers stand alone: see runtime.process
        where = f"epoch {events.epoch}, {events.first} to {events.last}"
        log.warning("%s, %s: %s", of, where, detail)
        self.dead_letters += refused_letters(task, state.partition, piece, reason, detail)
        drops = state.refuse(piece, reason)
        self.drops += [(state.partition, DeclaredDrop(None, drop)) for drop in drops]
        self.parked.append(reason)


def store_declared(store: DeltaStore, positions: Positions, work: CommitWork, now_us: int) -> None:
    """Commit the declared drops, then the labels."""
    _store(store, positions, DROPS, drop_rows, work.drops, now_us)
    _store(store, positions, LABELS, label_rows, work.labels, now_us)


def _store(
    store: DeltaStore,
    positions: Positions,
    table: str,
    rows_of: RowsOf,
    declared: Sequence[tuple[int, Any]],
    now_us: int,
) -> None:
    if not declared:
        return
    partitions = {partition for partition, _ in declared}
    versions = {p: positions[p].commits[table] + 1 for p in partitions}
    _commit(store, positions, table, rows_of(declared, versions, now_us), versions)


def store_scored(
    task: Task, store: DeltaStore, positions: Positions, batch: Batch
) -> pa.Table | None:
    """Commit the scored rows and return them."""
    if not batch.scored:
        return None
    rows = score_rows(task, batch.teacher, batch.scored)
    versions = {one.window.partition: one.commit for one in batch.scored}
    _commit(store, positions, SCORES, rows, versions)
    return rows


def _commit(
    store: DeltaStore, positions: Positions, table: str, rows: pa.Table, versions: dict[int, int]
) -> None:
    store.commit(table, rows, versions)
    for partition, version in versions.items():
        positions[partition].commits[table] = version


async def publish_all(broker: Broker, messages: Sequence[Outgoing]) -> None:
    """Send until the broker has all: what is in the store is not to be withheld."""
    wait_s, at = 0.25, 0
    while at < len(messages):
        try:
            await broker.publish(messages[at : at + AT_ONCE])
            wait_s, at = 0.25, at + AT_ONCE
        except BrokerUnavailable as exc:
            wait_s = min(2 * wait_s, 5.0)
            log.warning("%s; trying again in %.1f s", exc, wait_s)
            await asyncio.sleep(wait_s)


class WindowSpans:
    """The traces of one flush: a span `worker.window` for each window with a sampled message of
    `events`.

    It lasts from the beginning of step 1 until the report is published, and notes the ends of the
    steps. It is a child of the span that the window's newest sampled message names, links to those
    of the others, and is what the headers on `scores` and `windows` name. What an assignment
    publishes again from the store has no header: the store does not have the messages.
    """

    def __init__(self, tracing: Tracing) -> None:
        self._tracing, self._began_ns = tracing, time.time_ns()
        self._spans: dict[Report, Span] = {}

    def scored(self, batch: Batch) -> None:
        """Begin the spans: the windows' revisions are known now."""
        for one in batch.scored if self._tracing.on else ():
            traces = {p.message.offset: p.message.trace for p in one.window.pieces}
            *others, newest = [""] + [traces[at] for at in sorted(traces) if traces[at]]
            if newest:
                links = [text for text in others if text][-LINKS:]
                report = one.window.device, one.window.start, one.revision
                self._spans[report] = self._begin(one, newest, links)
        self.note("scored")

    def _begin(self, one: ScoredWindow, parent: str, links: list[str]) -> Span:
        window = one.window
        about: About = {
            "device": window.device, "window": window.start, "revision": one.revision,
            "rows": window.rows, "partition": window.partition, "commit": one.commit,
        }  # fmt: skip
        began_ns = self._began_ns
        return self._tracing.begin("worker.window", about, parent, links, "CONSUMER", began_ns)

    def note(self, event: str) -> None:
        for span in self._spans.values():
            span.note(event)

    def marked(self, messages: Sequence[Outgoing]) -> list[Outgoing]:
        """Return messages on `scores` and `windows`, with a header where their window has one."""
        return [self._marked(m) for m in messages] if self._spans else list(messages)

    def _marked(self, message: Outgoing) -> Outgoing:
        about = dict(message.headers)
        report = about["device"].decode(), int(about["window"]), int(about["revision"])
        found = self._spans.get(report)
        return message if found is None else replace(
            message, headers=[*message.headers, *found.headers]
        )  # fmt: skip

    def end(self) -> None:
        for span in self._spans.values():
            span.end()
