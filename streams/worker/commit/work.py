"""What a commit needs of Kafka, what one flush takes through its steps, and the steps that store
and publish it."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from streams.contract.errors import BrokerUnavailable
from streams.contract.events.messages import Drop
from streams.contract.task import Task
from streams.worker.commit.publications import Outgoing
from streams.worker.scoring.rows import score_rows
from streams.worker.scoring.scoring_step import Batch
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.tables import DROPS, LABELS, SCORES, drop_rows, label_rows
from streams.worker.windows.partition import DeclaredDrop, NewLabels, StorePosition
from streams.worker.windows.tumbling import Message, Window, WindowSlice

AT_ONCE = 2000  # messages: a publication that times out is repeated whole
COMMIT_OF = {DROPS: "drops_commit", LABELS: "labels_commit"}  # in a StorePosition

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
    malformed: list[Message] = field(default_factory=list)
    lost: dict[int, list[Drop]] = field(default_factory=dict)  # by partition, of a hole

    def __bool__(self) -> bool:
        taken = self.windows, self.drops, self.labels, self.unbelieved, self.dead_letters, self.lost
        return any(taken)


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
    versions = {p: getattr(positions[p], COMMIT_OF[table]) + 1 for p in partitions}
    store.commit(table, rows_of(declared, versions, now_us), versions)
    for partition, version in versions.items():
        setattr(positions[partition], COMMIT_OF[table], version)


def store_scored(
    task: Task, store: DeltaStore, positions: Positions, batch: Batch
) -> pa.Table | None:
    """Commit the scored rows and return them."""
    if not batch.scored:
        return None
    rows = score_rows(task, batch.teacher, batch.scored)
    versions = {one.window.partition: one.commit for one in batch.scored}
    store.commit(SCORES, rows, versions)
    for partition, version in versions.items():
        positions[partition].commit = version
    return rows


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
