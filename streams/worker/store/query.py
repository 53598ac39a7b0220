"""Queries on the store: SQL over its tables, and the server's event account."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from streams.contract.accounting import LabelDelay
from streams.contract.errors import UsageError
from streams.worker.store.retention import AGED
from streams.worker.store.tables import (
    SCORES,
    TABLES,
    Place,
    has_table,
    open_table,
    rows_in,
    table_at,
)

NAMES = (*TABLES, AGED)
INTERVAL = "month_day_nano_interval"  # Arrow's name of the type

ACCOUNT = """
    with agings as (
        select partition, max(before) as before, max(until) as until from aged group by all
    ),
    kept as (  -- rows that count in `aged` may still be there
        select s.device, s.epoch, s.seq from scores s left join agings a using (partition)
        where a.before is null or s."window" >= a.before or s."commit" > a.until
    ),
    scored as (
        select device, epoch, sum(n) as n from (
            select device, epoch, count(*) as n from kept group by all
            union all select device, epoch, scored from aged
        ) group by all
    ),
    dropped as (select device, epoch, sum(last - first + 1) as n from drops group by all),
    -- An event that was declared dropped but arrived counts as scored.
    late as (
        select device, epoch, sum(n) as n from (
            select d.device, d.epoch, count(*) as n from drops d join kept s
            on s.device = d.device and s.epoch = d.epoch and s.seq between d.first and d.last
            group by all
            union all select device, epoch, late from aged
        ) group by all
    )
    select device, epoch, coalesce(scored.n, 0), coalesce(dropped.n, 0) - coalesce(late.n, 0)
    from scored full join dropped using (device, epoch) left join late using (device, epoch)
"""


# Which labels are of which events, by what a label names, which `OF` tells. Labels of one instant
# are joined by equality, which is fast; those of an interval by comparison.
OWN = "t.event_epoch = s.epoch and t.event_seq = s.seq"
MATCHES = {
    "instant": f"""t."from" = s."time" and t."from" = t."to"
        and (t.event_seq is null or ({OWN}))""",
    "span": f"""s."time" between t."from" and t."to" and t."from" < t."to"
        and (t.event_seq is null or ({OWN}))""",
    "number": f"""{OWN} and t."from" is null""",
    "name": "t.event_id = s.event_id",
}
OF = {
    "instant": '"from" = "to"',
    "span": '"from" < "to"',
    "number": '"from" is null and event_seq is not null',
    "name": "event_id is not null",
}


def matches(
    scores: str, labels: str, kinds: Iterable[str] = MATCHES, *, few: Literal["s", "t"] = "t"
) -> str:
    """Return SQL for the events and their labels: the columns of an event that name it, `time`,
    `window`, and label, told, source, number and queue, by which the latest is known. few: which
    side, events or labels, stands on the right of the join, from which its table is made."""
    s, t = f"{scores} s", f"{labels} t"
    sides = f"{t} join {s}" if few == "s" else f"{s} join {t}"
    return " union all ".join(
        f"""
        select s.device, s.epoch, s.seq, s.event_id, s."time", s."window",
               t.label, t.told, t.source, t.number, t.epoch as queue
        from {sides} on t.device = s.device and {MATCHES[kind]}
        """
        for kind in kinds
    )


LATEST = """
    select device, epoch, seq, arg_max(label, (told, number, queue)) as label,
           max(told) as told, arg_max(source, (told, number, queue)) as source
    from ({matches}) group by device, epoch, seq
"""
LABELLED = """
    create view {view} as
    with latest as ({latest})
    select s.* replace (
               coalesce(latest.label, s.label) as label,
               case when latest.label is null or latest.label = s.label then s.correct end
                   as correct
           ), latest.told,
           coalesce(latest.source, case when s.label is not null then 'event' end) as source
    from {scores} s left join latest using (device, epoch, seq)
"""
WINDOWS = """
    create view windows as
    select device, "window", model, count(*) as events, count(agrees) as compared,
           count(*) filter (agrees) as agreeing, count(label) as labelled,
           max(revision) + 1 as reports, max("time") as last_event{errors}
    from {scores} group by device, "window", model
"""
# Of targets: answers minus the teacher's, or the labels where no teacher is asked.
PAIRS = "list_zip(outputs, case when len(teacher) > 0 then teacher else label end)"
ERRORS = f""",
           avg(list_avg([abs(p[1] - p[2]) for p in {PAIRS}])) as mae,
           sqrt(avg(list_avg([(p[1] - p[2]) ^ 2 for p in {PAIRS}]))) as rmse"""
# Of classes: half the squared distance of the softmax p of an answer from q, that of the teacher or
# the label where no teacher is asked, as (pp - 2 pq + qq) / 2. `e` and `f` are exp of the outputs.
SOFT = """(
        select *, [exp(x::double - high) for x in outputs] as e, list_sum(e) as e_sum,
               [exp(x::double - teacher_high) for x in teacher] as f, list_sum(f) as f_sum
        from (select *, list_max(outputs) as high, list_max(teacher) as teacher_high from scores)
    )"""
BRIER = """,
           avg(list_inner_product(e, e) / e_sum ^ 2 / 2 + case
               when len(teacher) > 0 then
                   list_inner_product(f, f) / f_sum ^ 2 / 2
                   - list_inner_product(e, f) / (e_sum * f_sum)
               else 0.5 - e[label[1]::int + 1] / e_sum end) as brier"""
# An answer has one value a target, or one a class, of which there are two at least; null where
# several values without a label may be either.
NUMBERS = """
    select (select len(outputs) from scores limit 1) = 1 or
           (select len(outputs) = len(label) from scores where label is not null limit 1)
"""
# DuckDB writes one to stdout, among the rows, where it takes the process for an interactive one.
NO_BAR = "set enable_progress_bar = false"


def open_store(store: Place) -> duckdb.DuckDBPyConnection:
    """Return a connection with views `scores`, `drops`, `labels`, `revised`, `aged`, `windows` and
    `labelled` on the store's current version. `windows` has a row for each device, window and model
    version, of targets with the mean absolute and the root mean square error from the teacher, of
    classes with the Brier distance; its `labelled` counts the events that came with a label. The
    view `labelled` is `scores` with the latest label, when, and by whom; `correct` is null where
    that is another label than the event came with: the store knows no threshold and no tolerance.

    Only committed files are read. Close the connection after use.
    """
    with ThreadPoolExecutor() as pool:  # each waits for its log
        tables = list(pool.map(partial(dataset, store), NAMES))
    connection = duckdb.connect()
    connection.execute(NO_BAR)
    for name, rows in zip(NAMES, tables, strict=True):
        connection.register(name, rows)
    [(numbers,)] = connection.execute(NUMBERS).fetchall()
    errors = {True: ERRORS, False: BRIER, None: ERRORS + BRIER}[numbers]
    connection.execute(WINDOWS.format(errors=errors, scores=SOFT))
    connection.execute(labelled_view("labelled", "scores"))
    return connection


def labelled_view(view: str, scores: str) -> str:
    """Return SQL that makes `view`: the events of `scores` with their latest labels."""
    latest = LATEST.format(matches=matches(scores, "labels"))
    return LABELLED.format(view=view, scores=scores, latest=latest)


RECENT = """
    create temp table recent as
    select device, epoch, seq, event_id, "time", "window", label, correct from scores
    where "time" > (select max("time") from scores) - interval 7 day
"""
COUNTED = """
    select count(*), count(label), median(epoch_us(told) - epoch_us("time")) / 1e6
    from labelled_recent
"""


def label_delay(store: Place, *, live: bool) -> LabelDelay:
    """Return how late labels are, of live events alone: those of a recording have its times, and
    their labels the clock's. Reads the week's events."""
    with open_store(store) as connection:
        connection.execute(RECENT)
        connection.execute(labelled_view("labelled_recent", "recent"))
        [(events, labelled, delay_s)] = connection.execute(COUNTED).fetchall()
    return LabelDelay(events, labelled, delay_s if live else None)


def dataset(store: Place, name: str = SCORES) -> ds.Dataset:
    """Return a table's current version; raise UsageError if there is none."""
    if not has_table(store, name):
        raise UsageError(f"{store} is not a store: it has no Delta table {name}")
    return rows_in(open_table(store, name), table_at(store, name))


def server_account(store: Place) -> dict[tuple[str, str], tuple[int, int]]:
    """Return (device, epoch) -> (events scored, events dropped and not scored): nothing where no
    worker has made the tables yet."""
    if not all(has_table(store, name) for name in NAMES):
        return {}
    with open_store(store) as connection:
        rows = connection.execute(ACCOUNT).fetchall()
    return {(device, epoch): (int(s), int(d)) for device, epoch, s, d in rows}


def with_durations(connection: duckdb.DuckDBPyConnection, found: pa.Table) -> pa.Table:
    """Return the rows of a query with intervals as the text that DuckDB writes into a CSV file: `9
    days 00:00:12`. In Arrow they are months, days and nanoseconds."""
    kinds = [str(kind) for kind in found.schema.types]
    if not any(INTERVAL in kind for kind in kinds):
        return found
    columns = []
    for number, (name, kind) in enumerate(zip(found.column_names, kinds, strict=True), 1):
        value = f"#{number}::varchar" if INTERVAL in kind else f"#{number}"
        quoted = name.replace('"', '""')
        columns.append(f'{value} as "{quoted}"')
    return connection.from_arrow(found).project(", ".join(columns)).to_arrow_table()
