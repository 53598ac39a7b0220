"""Step 2 of a commit: what a flush adds to the store's tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from streams.contract.task import Task
from streams.worker.commit.work import CommitWork
from streams.worker.scoring.rows import score_rows
from streams.worker.scoring.scoring_step import Batch
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.tables import DROPS, LABELS, SCORES, drop_rows, label_rows
from streams.worker.windows.partition import StorePosition

COMMIT_OF = {DROPS: "drops_commit", LABELS: "labels_commit"}  # in a StorePosition

Positions = Mapping[int, StorePosition]
RowsOf = Callable[[Any, Mapping[int, int], int], pa.Table]


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
