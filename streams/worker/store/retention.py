"""Rows that are older than the store keeps: what stays known of them, and which they are.

A partition's rows are old if their window begins more than `keep_days` before the newest window of
the partition's median device, by event time: a device with a wrong clock makes nobody's rows old.
The table `aged` has for each aging of a partition, numbered by `commit`, and each epoch that lost
rows: how many (`scored`), how many of these had been declared dropped before they came (`late`),
and their seqs. Rows of windows before `before` and of commits up to `until` count there, whether
they are deleted yet or not.

1. rows of `aged` are committed, with the application transaction `aged/<partition>`
2. the old rows of `scores`, `labels` and `revised` are deleted

After a crash in between the next maintenance deletes what is left.
"""

from dataclasses import dataclass
from statistics import median_low

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from streams.contract.events.batches import TIMESTAMP
from streams.worker.windows.partition import StorePosition
from streams.worker.windows.rows import DAY_US, stored_columns

AGED = "aged"


def aged_schema() -> pa.Schema:
    """Return the columns of `aged`; `day` is the last day whose rows it has, `seqs` are first and
    last of each interval."""
    kinds = {
        "device": pa.string(), "epoch": pa.string(), "scored": pa.int64(), "late": pa.int64(),
        "seqs": pa.list_(pa.int64()), "before": TIMESTAMP, "until": pa.int64(),
    }  # fmt: skip
    return stored_columns(kinds)


@dataclass(frozen=True)
class Aging:
    """The rows of a partition's windows before `before_us`, of commits up to `until`."""

    partition: int
    before_us: int = 0
    until: int = 0

    @property
    def scores(self) -> str:
        """The old rows of `scores`, in SQL."""
        return (
            f"partition = {self.partition} and day <= '{_date(self.before_us)}' and "
            f'"window" < \'{_time(self.before_us)}\' and "commit" <= {self.until}'
        )

    @property
    def revised(self) -> str:
        """The old rows of `revised`: those of old events, in SQL."""
        return (
            f"partition = {self.partition} and \"window\" < '{_time(self.before_us)}' "
            f"and stored <= {self.until}"
        )

    @property
    def labels(self) -> str:
        """The labels of old events, in SQL; those that came later may be about newer ones."""
        before = _time(self.before_us)
        return f"partition = {self.partition} and coalesce(\"to\", told) < '{before}'"


def next_aging(position: StorePosition, partition: int, keep_days: float) -> Aging:
    """Return what is old now: whole days, and not the last commit, which may be published again."""
    if not position.newest:
        return Aging(partition)
    newest_us = median_low(position.newest.values())
    before_us = int(newest_us - keep_days * DAY_US) // DAY_US * DAY_US
    return Aging(partition, max(0, before_us), max(0, position.commit - 1))


def last_aging(aged: ds.Dataset, partition: int) -> Aging:
    """Return the last aging in the table."""
    found = aged.to_table(["before", "until"], filter=ds.field("partition") == partition)
    if not found.num_rows:
        return Aging(partition)
    before = pa.compute.max(found.column("before").cast(pa.int64())).as_py()
    return Aging(partition, int(before), int(pa.compute.max(found.column("until")).as_py()))


def aged_rows(
    scores: ds.Dataset, drops: ds.Dataset, before: Aging, aging: Aging, number: int
) -> pa.Table:
    """Return the rows of `aged` for what `aging` has and the one `before` it has not."""
    connection = duckdb.connect(config={"threads": 1})
    with connection:
        connection.register("scores", scores)
        connection.register("drops", drops)
        rows = connection.execute(
            COUNTED.format(now=aging.scores, before=before.scores), [aging.partition]
        ).fetchall()
    same = {
        "before": aging.before_us, "until": aging.until, "partition": aging.partition,
        "commit": number, "day": aging.before_us // DAY_US,
    }  # fmt: skip
    names = ("device", "epoch", "scored", "late", "seqs")
    found = [dict(zip(names, row, strict=True)) | same for row in rows]
    return pa.Table.from_pylist(found, aged_schema())


# Consecutive seqs have the same difference to their rank, see position.ISLANDS. Repeated rows would
# be counted as often as they are there.
COUNTED = """
    with old as (select device, epoch, seq from scores where {now} and not ({before})),
    ranked as (
        select device, epoch, seq,
               seq - dense_rank() over (partition by device, epoch order by seq) as island
        from old
    ),
    islands as (
        select device, epoch, count(*) as n, min(seq) as first, max(seq) as last
        from ranked group by device, epoch, island
    ),
    late as (
        select o.device, o.epoch, count(*) as n from old o join drops d
        on d.device = o.device and d.epoch = o.epoch and o.seq between d.first and d.last
        where d.partition = ? group by all
    )
    select i.device, i.epoch, sum(i.n)::bigint, coalesce(any_value(late.n), 0)::bigint,
           flatten(list([i.first, i.last] order by i.first))
    from islands i left join late using (device, epoch) group by i.device, i.epoch
"""


def _time(at_us: int) -> str:
    """Return the time as SQL's libraries read it, UTC."""
    return f"{pa.scalar(at_us, pa.timestamp('us')).as_py()}+00:00"


def _date(at_us: int) -> str:
    return str(pa.scalar(at_us, pa.timestamp("us")).as_py().date())
