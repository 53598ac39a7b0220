"""The store: Delta Lake tables in one folder or under one URL (tables.py).

Each commit carries one application transaction per Kafka partition that it has rows of
(`events/<partition>`, `drops/<partition>`, `labels/<partition>`, `revised/<partition>`); its
version counts that partition's commits. This is the fence: an owner that finds an unexpected
version, or whose commit conflicts with one of the same id, has lost the partition. Snapshots of
positions are beside the tables (position.py).

Maintenance is on a thread of its own (maintenance.py): it never delays a commit, and nothing
depends on it. Where a partition's commits have added 256 files to `scores` its owner

1. writes positions/<partition>.jsonl.zst: the position up to the partition's present commits
2. with `keep_days`, moves old rows from `scores` and `labels` to `aged` (retention.py), and
   deletes those of `revised`
3. compacts the partition's files of the tables
4. deletes files that no version of the last day has, and log entries older than a day

A crash costs the work alone: a snapshot is written as a whole, and an interrupted compaction is no
commit. A snapshot depends only on the rows up to its commits; one that cannot be read, or is ahead
of the tables, is ignored, and all rows are read. Of two workers that clean one table at once one
collides, logs it, and retries at its next turn.

The process may be killed during maintenance. `stop` waits for it, because a library call that
returns during the interpreter's shutdown would crash.
"""

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from time import sleep

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import DeltaError

from streams.contract.accounting import IntervalSet
from streams.contract.errors import PartitionLost, TidewheelError, line_of
from streams.worker.store.position import (
    read_aged,
    read_rows,
    read_snapshot,
    rows_of_last_windows,
    write_snapshot,
)
from streams.worker.store.retention import AGED, aged_rows, last_aging, next_aging
from streams.worker.store.tables import (
    APPLICATION,
    DROPS,
    KEEP,
    LABELS,
    REVISED,
    SCORES,
    TABLES,
    Crowded,
    Place,
    open_table,
    rows_in,
    table_at,
    translated,
)
from streams.worker.windows.partition import StorePosition
from streams.worker.windows.rows import store_schema

log = logging.getLogger(__name__)

RETRIES = 15  # of deltalake, without a pause; its default
ATTEMPTS, PAUSE_S = 20, 0.1  # a minute at most, half of it on average


class DeltaStore:
    """A worker's access to the store; not thread-safe."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._tables = {name: open_table(place, name) for name in (*TABLES, AGED)}
        self.name = str(self._tables[SCORES].metadata().id)[:8]  # of the store, for ever

    def twin(self) -> "DeltaStore":
        """Return another access, for another thread."""
        return DeltaStore(self._place)

    def position(self, partition: int) -> StorePosition:
        """Return the position of `partition`, from a snapshot and the rows after it."""
        commits = Counter[str]()
        for name in TABLES:  # `scores` before `drops`, see read_rows
            commits[name] = self.last_commit(name, partition)
        position = read_snapshot(self._place, partition, self._ids(), commits)
        if not position.commit:  # no snapshot: the seqs of deleted rows are in `aged` alone
            self._refreshed(AGED)
            read_aged(position, self._rows(AGED, partition), partition)
        scores, drops, labels = (self._rows(name, partition) for name in (SCORES, DROPS, LABELS))
        read_rows(position, scores, drops, labels, partition)
        position.commits = commits
        return position

    def _ids(self) -> list[str]:
        return [str(self._tables[name].metadata().id) for name in TABLES]

    def revisions(
        self, partition: int, keys: Sequence[tuple[str, int]]
    ) -> dict[tuple[str, int], int]:
        """Return the number of reports of each (device, window start)."""
        starts = [start for _, start in keys]
        columns = ["device", "window", "revision"]
        wanted = ds.field("window").isin(
            pa.array(starts, store_schema().field("window").type)
        ) & ds.field("device").isin([device for device, _ in keys])
        parts = [self._read(t, partition, wanted, columns) for t in (SCORES, REVISED)]
        found = pa.concat_tables(parts)
        grouped = found.group_by(["device", "window"]).aggregate([("revision", "max")])
        windows = grouped.column("window").cast(pa.int64()).to_pylist()
        latest = grouped.column("revision_max").to_pylist()
        devices = grouped.column("device").to_pylist()
        counts = {(d, w): n + 1 for d, w, n in zip(devices, windows, latest, strict=True)}
        return {key: counts.get(key, 0) for key in keys}

    def placed(self, table: str, partition: int, epoch: str, since: int) -> IntervalSet:
        """Return the numbers from `since` on that a table has of an epoch of places in Kafka."""
        name, wanted = "seq" if table == SCORES else "number", ds.field("epoch") == epoch
        found = self._read(table, partition, wanted & (ds.field(name) >= since), [name])
        seqs = IntervalSet((seq, seq) for seq in sorted(found.column(name).to_pylist()))
        if table == SCORES:
            for spans in self._read(AGED, partition, wanted, ["seqs"]).column("seqs"):
                for first, last in zip(*[iter(spans.as_py())] * 2, strict=True):
                    seqs.add(first, last)
        return seqs

    def rows_of(self, partition: int, commit: int) -> pa.Table:
        """Return the rows of one commit of one partition."""
        wanted = ds.field("commit") == commit
        found = self._read(SCORES, partition, wanted, store_schema().names)
        return found.cast(store_schema())  # Parquet names the values of a list differently

    def latest_rows(self, partition: int, span_us: int) -> pa.Table:
        """Return the rows of each device's windows that start less than `span_us` before its newest
        one does."""
        with translated(table_at(self._place, SCORES)):
            self._refreshed(SCORES)
            found = rows_of_last_windows(self._rows(SCORES, partition), partition, span_us)
        return found.select(store_schema().names).cast(store_schema())

    def revised(self, partition: int, commit: int) -> pa.Table:
        """Return the reports of one commit of `revised`, of one partition."""
        wanted = (ds.field("commit") == commit) & ds.field("report").is_valid()
        columns = ["device", "window", "revision", "report"]
        return self._read(REVISED, partition, wanted, columns)

    def last_commit(self, table: str, partition: int) -> int:
        """Return the number of a partition's last commit."""
        return self.mark(table, f"{APPLICATION[table]}/{partition}")

    def mark(self, table: str, name: str) -> int:
        """Return the number that a commit gave this name last; 0 without one."""
        return self._refreshed(table).transaction_version(name) or 0

    def commit(
        self,
        table: str,
        rows: pa.Table,
        versions: Mapping[int, int],
        marks: Mapping[str, int] | None = None,
    ) -> None:
        """Add `rows` in one commit, number `versions[partition]` of each partition; marks: numbers
        that it gives to names (`mark`).

        Other workers commit to the same table: one after the other. Where they come first in all
        of deltalake's tries, or have deleted old rows of theirs meanwhile, the fence is looked at
        again, and the commit tried again after a pause.

        Raises PartitionLost if another worker has committed for one of the partitions, and
        TidewheelError if others have come first for too long.
        """
        for attempt in range(ATTEMPTS):
            try:
                self._commit(table, rows, versions, marks or {})
                return
            except Crowded as exc:
                where = table_at(self._place, table)
                log.warning("a commit to %s waits: others came first (%s)", where, exc)
                sleep(random.uniform(0, PAUSE_S * (attempt + 1)))
        raise TidewheelError(
            f"the store {table_at(self._place, table)}: other workers came first in {ATTEMPTS} "
            "attempts to commit: run fewer workers with more partitions each"
        )

    def _commit(
        self, table: str, rows: pa.Table, versions: Mapping[int, int], marks: Mapping[str, int]
    ) -> None:
        application, delta = APPLICATION[table], self._refreshed(table)
        for partition, version in versions.items():
            found = delta.transaction_version(f"{application}/{partition}") or 0
            if found != version - 1:
                raise PartitionLost(
                    f"partition {partition} belongs to another worker: "
                    f"{table_at(self._place, table)} has its commit {found}, this worker expected "
                    f"{version - 1}"
                )
        transactions = [Transaction(f"{application}/{p}", v) for p, v in versions.items()]
        transactions += [Transaction(name, number) for name, number in marks.items()]
        with translated(table_at(self._place, table)):
            write_deltalake(
                delta,
                rows,
                mode="append",
                commit_properties=CommitProperties(
                    app_transactions=transactions, max_commit_retries=RETRIES
                ),
            )

    def keep_up(self, partition: int, keep_days: float | None = None) -> None:
        """Write a snapshot of the partition's position, delete rows that are older than `keep_days`
        (retention.py), compact its small files, and delete unused files and log entries.

        A crash loses only this work. Raises PartitionLost if another worker ages the partition.
        """
        position = self.position(partition)
        write_snapshot(self._place, partition, position, self._ids())
        if keep_days is not None:
            self._age(position, partition, keep_days)
        for name in (*TABLES, AGED):
            table = self._refreshed(name)
            try:
                table.optimize.compact(partition_filters=[("partition", "=", str(partition))])
                hours = int(KEEP.total_seconds() // 3600)
                table.vacuum(retention_hours=hours, dry_run=False, enforce_retention_duration=False)
                table.cleanup_metadata()
            except (DeltaError, OSError) as exc:
                # Another worker changed the same files: the next run will do it.
                where = table_at(self._place, name)
                log.warning("maintenance of %s postponed: %s", where, line_of(exc))

    def _age(self, position: StorePosition, partition: int, keep_days: float) -> None:
        aged = self._refreshed(AGED)
        before = last_aging(self._rows(AGED, partition), partition)
        aging = next_aging(position, partition, keep_days)
        if aging.before_us > before.before_us:
            self._refreshed(SCORES)
            self._refreshed(DROPS)
            number = (aged.transaction_version(f"aged/{partition}") or 0) + 1
            datasets = self._rows(SCORES, partition), self._rows(DROPS, partition)
            rows = aged_rows(*datasets, before, aging, number)
            if rows.num_rows:
                self.commit(AGED, rows, {partition: number})
                before = aging
                log.info(
                    "partition %d: %d events of windows before %s are older than %g days: their "
                    "rows are deleted", partition, sum(rows.column("scored").to_pylist()),
                    rows.column("before")[0], keep_days,
                )  # fmt: skip
        if not before.before_us:
            return
        old_labels = (LABELS, before.labels), (REVISED, before.revised)
        for name, old in ((SCORES, before.scores), *old_labels):
            # What is committed meanwhile has a later number, so Delta finds no conflict with it.
            known = f'{old} and "commit" <= {position.commits[name]}'
            try:
                self._refreshed(name).delete(known)
            except (DeltaError, OSError) as exc:
                # Another worker changed the same files: the next run will do it.
                where = table_at(self._place, name)
                log.warning("deleting old rows of %s postponed: %s", where, line_of(exc))

    def _read(
        self, table: str, partition: int, wanted: ds.Expression, columns: list[str]
    ) -> pa.Table:
        with translated(table_at(self._place, table)):
            self._refreshed(table)
            return self._rows(table, partition).to_table(columns, filter=wanted)

    def _refreshed(self, table: str) -> DeltaTable:
        with translated(table_at(self._place, table)):
            self._tables[table].update_incremental()
        return self._tables[table]

    def rows(self, table: str) -> ds.Dataset:
        """The rows of the table's newest version."""
        self._refreshed(table)
        return self._rows(table)

    def _rows(self, table: str, partition: int | None = None) -> ds.Dataset:
        """The rows of the version that was loaded last, or those of one partition."""
        return rows_in(self._tables[table], table_at(self._place, table), partition)
