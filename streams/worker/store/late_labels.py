"""Labels of events that are stored: which of them reports do not count yet.

A label may come before its event is stored or after. So a look at a partition joins what is new of
either side with all of the other: labels since the last look with the stored events, and events
since then with the labels before. What counts for an event that it finds is the latest label, as in
the view `labelled` (query.py), in place of what reports count by now: the event's last row in
`revised`, or else its own label. A look depends on nothing else: a second one finds nothing, and
one that starts anew from the beginning of time finds what is left.

DuckDB joins in a stream, on one thread and in MEMORY, and writes what does not fit into a temporary
folder; a look has the events that it found in memory.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import duckdb
import pyarrow as pa

from streams.contract.errors import TidewheelError, line_of
from streams.worker.store.delta_store import DeltaStore
from streams.worker.store.query import LATEST, OF, matches
from streams.worker.store.tables import LABELS, REVISED, SCORES

MEMORY = "256MB"
# Nothing is known of how many rows a dataset has: the larger side of a join would be in memory.
AS_WRITTEN = "set disabled_optimizers = 'join_order,build_side_probe_side'"


@dataclass(frozen=True)
class Joined:
    """Up to which commits of a partition labels and events have been joined with each other."""

    labels: int = 0
    events: int = 0


@dataclass(frozen=True)
class Found:
    """What a look found: `rows`, events by device and window, with the label that reports count,
    `before`, and the one that they should; up to where it went; and of the windows' reports, by
    device and start, the next `numbers`."""

    partition: int
    joined: Joined
    rows: pa.Table
    numbers: Mapping[tuple[str, int], int]


def look(store: DeltaStore, partition: int, since: Joined, most: int) -> Found | None:
    """Return which events of a partition have a label that reports do not count yet; None if there
    is nothing new to look at. most: labels, about. Raises TidewheelError."""
    upto = Joined(store.last_commit(LABELS, partition), store.last_commit(SCORES, partition))
    if upto.labels == 0 or upto == since:
        return None
    with tempfile.TemporaryDirectory() as folder:
        config: dict[str, str | bool | int | float | list[str]] = {
            "threads": 1,
            "memory_limit": MEMORY,
            "temp_directory": folder,
        }
        connection = duckdb.connect(config=config)
        try:
            connection.execute(AS_WRITTEN)
            for name in (SCORES, LABELS, REVISED):
                connection.register(f"all_{name}", store.rows(name))
                of = f"select * from all_{name} where partition = {partition}"
                connection.execute(f"create view {name} as {of}")
            return _look(connection, partition, since, upto, most)
        except duckdb.Error as exc:
            raise TidewheelError(f"labels of partition {partition}: {line_of(exc)}") from exc
        finally:
            connection.close()


def _look(
    connection: duckdb.DuckDBPyConnection, partition: int, since: Joined, upto: Joined, most: int
) -> Found:
    joined = Joined(_last(connection, since.labels, upto.labels, most), upto.events)
    connection.execute(
        f"""
        create view known as select * from labels where "commit" <= {joined.labels};
        create view older as select * from labels where "commit" <= {since.labels};
        create view newer as select * from scores where "commit" > {since.events};
        create temp table fresh as select * from known where "commit" > {since.labels}
        """
    )
    kinds = _kinds(connection, "fresh")
    connection.execute(f"create temp table touched as {_events('scores', 'fresh', kinds)}")
    if since.labels:
        kinds = _kinds(connection, "known")
        if upto.events > since.events:
            connection.execute(f"insert into touched {_events('newer', 'older', kinds, 's')}")
    [(first, last)] = connection.execute(BETWEEN).fetchall()
    if first is None:  # no event, so no row
        return Found(partition, joined, connection.table("touched").to_arrow_table(), {})
    latest = LATEST.format(matches=matches("touched", "known", kinds, few="s"))
    connection.execute(f"create temp table latest as {latest}")
    bounds = {"first": first / 1e6 - 1, "last": last / 1e6 + 1}
    connection.execute(CHANGED.format(**bounds))
    rows = connection.sql('select * from changed order by device, "window", epoch, seq')
    numbers = connection.execute(NUMBERS.format(**bounds)).fetchall()
    found = {(device, start): number for device, start, number in numbers}
    return Found(partition, joined, rows.to_arrow_table(), found)


def _last(connection: duckdb.DuckDBPyConnection, since: int, upto: int, most: int) -> int:
    """Return up to which commit of labels one look takes them."""
    taken = 0
    for commit, count in connection.execute(COUNTS, [since]).fetchall():
        taken += count
        if taken >= most:
            return int(commit)
    return upto


def _kinds(connection: duckdb.DuckDBPyConnection, labels: str) -> Sequence[str]:
    """Return by what the labels name their events."""
    counts = ", ".join(f"count(*) filter ({OF[kind]})" for kind in OF)
    [found] = connection.execute(f"select {counts} from {labels}").fetchall()
    return [kind for kind, count in zip(OF, found, strict=True) if count]


def _events(scores: str, labels: str, kinds: Sequence[str], few: Literal["s", "t"] = "t") -> str:
    columns = 'device, epoch, seq, event_id, "time", "window"'
    if not kinds:
        return f"select {columns} from scores limit 0"
    return f"select distinct {columns} from ({matches(scores, labels, kinds, few=few)})"


COUNTS = 'select "commit", count(*) from labels where "commit" > ? group by "commit" order by 1'
BETWEEN = 'select epoch_us(min("window")), epoch_us(max("window")) from touched'
# Bounds on `window` keep files of other days from being read.
CHANGED = """
    create temp table changed as
    with own as (
        select s.device, s.epoch, s.seq, s."time", s."window", s.model, s.outputs, s.teacher_model,
               s.teacher, s.agrees, s.label, s."commit" as stored
        from scores s semi join touched using (device, epoch, seq)
        where s."window" between to_timestamp({first}) and to_timestamp({last})
    ),
    counted as (
        select r.device, r.epoch, r.seq, arg_max(r.label, r."commit") as label
        from revised r semi join touched using (device, epoch, seq)
        where r."window" between to_timestamp({first}) and to_timestamp({last})
        group by all
    )
    select own.* exclude (label), coalesce(counted.label, own.label) as before,
           latest.label as label
    from own join latest using (device, epoch, seq)
    left join counted using (device, epoch, seq)
    where coalesce(counted.label, own.label) is distinct from latest.label
"""
NUMBERS = """
    select device, epoch_us("window"), max(revision) + 1 from (
        select device, "window", revision from scores
        where "window" between to_timestamp({first}) and to_timestamp({last})
        union all
        select device, "window", revision from revised
        where "window" between to_timestamp({first}) and to_timestamp({last})
    ) semi join changed using (device, "window") group by all
"""
