"""The store's position in a partition, from its rows and a snapshot of the older ones.

    <store>/positions/<partition>.jsonl.zst   replaced as a whole
        line 1     {"tables": [ids of `scores`, `drops` and `labels`], "commits": {table: n}}
        the rest   one `DevicePosition` per device

A snapshot summarizes the rows up to its commits, so any worker may write it at any time; an old
one only costs time. A snapshot that is unreadable, of other tables, or ahead of them is ignored,
and all rows are read.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from streams.contract.accounting import IntervalSet
from streams.contract.documents import Document
from streams.contract.errors import MalformedRecord, TidewheelError, line_of
from streams.contract.events.json_items import PLACED
from streams.contract.zstd import ZstdError, compressed, decompressed
from streams.learning.drift_reference import WINDOWS
from streams.runtime.files import open_store
from streams.worker.store.tables import DROPS, LABELS, SCORES, Place
from streams.worker.windows.drift_watch import without_report
from streams.worker.windows.partition import Source, StorePosition

# Reasons of drops that the worker declares: the events are complete on `dead-letters` and are tried
# again only if an operator sends them again.
TEACHER_FAILED = "teacher-failed"
FROM_THE_FUTURE = "from-the-future"
REFUSED = (TEACHER_FAILED, FROM_THE_FUTURE)

SETS = ("taken", "refused", "dropped", "labelled")  # of a StorePosition
Spans = dict[str, list[tuple[int, int]]]  # by epoch

LARGEST = 1 << 32  # bytes of a snapshot

log = logging.getLogger(__name__)


class DevicePosition(Document):
    """One device in a snapshot; see partition.StorePosition."""

    device: str
    watermark: int | None = None
    newest: int | None = None
    taken: Spans = {}
    refused: Spans = {}
    dropped: Spans = {}
    labelled: Spans = {}
    drift: list[tuple[int, str]] = []


class Head(Document):
    """The first line of a snapshot."""

    tables: list[str]
    commits: dict[str, int]


def read_rows(
    position: StorePosition,
    scores: ds.Dataset,
    drops: ds.Dataset,
    labels: ds.Dataset,
    partition: int,
) -> None:
    """Update `position` with the rows of later commits; raise TidewheelError if this fails.

    `drops` must not be an older version of the store than `scores`.
    """
    connection = duckdb.connect(config={"threads": 1})
    try:
        connection.register("scores", scores)
        connection.register("drops", drops)
        connection.register("labels", labels)
        since = [partition, position.commits[DROPS]]
        for device, epoch, first, last, reason in connection.execute(DECLARED, since).fetchall():
            source = device, epoch
            _add(position.dropped, source, first, last)
            if reason in REFUSED:
                _add(position.taken, source, first, last)
                _add(position.refused, source, first, last)
        since = [partition, position.commits[LABELS]]
        sql = ISLANDS.format(number="number", table=LABELS, only=UNPLACED)
        for device, epoch, first, last in connection.execute(sql, since).fetchall():
            _add(position.labelled, (device, epoch), first, last)
        since = [partition, position.commit]
        sql = ISLANDS.format(number="seq", table=SCORES, only=NUMBERED)
        for device, epoch, first, last in connection.execute(sql, since).fetchall():
            _add(position.taken, (device, epoch), first, last)
            if (device, epoch) in position.refused:
                position.refused[device, epoch].remove(first, last)
        for device, time_us, window_us in connection.execute(NEWEST, since).fetchall():
            position.watermark[device] = max(time_us, position.watermark.get(device, -1))
            position.newest[device] = max(window_us, position.newest.get(device, -1))
        for device, window_us, text in connection.execute(LAST_DRIFT, since).fetchall():
            position.drift.setdefault(device, []).append((window_us, text))
    except duckdb.Error as exc:
        raise TidewheelError(
            f"the rows of partition {partition} cannot be read: {line_of(exc)}"
        ) from exc
    finally:
        connection.close()


def rows_of_last_windows(scores: ds.Dataset, partition: int, span_us: int) -> pa.Table:
    """Return the rows of each device's windows that start less than `span_us` before its newest
    one does."""
    connection = duckdb.connect(config={"threads": 1})
    try:
        connection.register("scores", scores)
        return connection.execute(LAST_WINDOWS, [partition, span_us]).to_arrow_table()
    finally:
        connection.close()


def read_aged(position: StorePosition, aged: ds.Dataset, partition: int) -> None:
    """Update `position` with the events whose rows were deleted."""
    columns = ["device", "epoch", "seqs"]
    for row in aged.to_table(columns, filter=ds.field("partition") == partition).to_pylist():
        if row["epoch"].startswith(PLACED):
            continue
        spans = row["seqs"]
        for first, last in zip(spans[::2], spans[1::2], strict=True):
            _add(position.taken, (row["device"], row["epoch"]), first, last)


def _add(sets: dict[Source, IntervalSet], source: Source, first: int, last: int) -> None:
    sets.setdefault(source, IntervalSet()).add(first, last)


def snapshot_name(partition: int) -> str:
    return f"positions/{partition}.jsonl.zst"


def write_snapshot(
    store: Place, partition: int, position: StorePosition, tables: Sequence[str]
) -> None:
    """Write the snapshot of `position`, for the tables with these ids."""
    spans = {name: _by_device(getattr(position, name)) for name in SETS}
    lines = [Head(tables=list(tables), commits=position.commits).encode()]
    for device in sorted(set().union(*spans.values())):
        drift = position.drift.get(device, [])
        last = sorted({window for window, _ in drift})[-WINDOWS:]
        found = DevicePosition(
            device=device,
            watermark=position.watermark.get(device),
            newest=position.newest.get(device),
            drift=[(window, without_report(text)) for window, text in drift if window in last],
            **{name: found.get(device, {}) for name, found in spans.items()},
        )
        lines.append(found.encode())
    data = compressed(b"\n".join(lines))
    open_store(store).write(snapshot_name(partition), data)


def _by_device(sets: dict[Source, IntervalSet]) -> dict[str, Spans]:
    found: dict[str, Spans] = {}
    for (device, epoch), intervals in sets.items():
        if intervals:
            found.setdefault(device, {})[epoch] = list(intervals)
    return found


def read_snapshot(
    store: Place, partition: int, tables: Sequence[str], commits: Mapping[str, int]
) -> StorePosition:
    """Return the snapshot's position; an empty one if it cannot be used for these tables, which
    have these commits."""
    path = f"{store}/{snapshot_name(partition)}"
    try:
        head, position = _read(open_store(store).read(snapshot_name(partition)))
    except FileNotFoundError:
        return StorePosition()
    except (OSError, ValueError, MalformedRecord, ZstdError) as exc:
        log.warning("reading all rows instead of %s: %s: %s", path, type(exc).__name__, exc)
        return StorePosition()
    ahead = (n > commits.get(table, 0) for table, n in head.commits.items())
    if head.tables != list(tables) or any(ahead):
        log.warning("reading all rows: %s belongs to another store", path)
        return StorePosition()
    return position


def _read(data: bytes) -> tuple[Head, StorePosition]:
    first, *rest = decompressed(data, LARGEST).split(b"\n")
    head = Head.decode(first)
    position = StorePosition(Counter(head.commits))
    for line in rest:
        found = DevicePosition.decode(line)
        if found.watermark is not None and found.newest is not None:
            position.watermark[found.device] = found.watermark
            position.newest[found.device] = found.newest
        for name in SETS:
            for epoch, intervals in getattr(found, name).items():
                getattr(position, name)[found.device, epoch] = IntervalSet(intervals)
        if found.drift:
            position.drift[found.device] = list(found.drift)
    return head, position


# Events that are counted by their place in Kafka are looked up by it (DeltaStore.placed), but for
# those that were refused: some were sent again.
UNPLACED = f"not starts_with(epoch, '{PLACED}')"
NUMBERED = f"""({UNPLACED} or exists (
    from drops d where d.device = scores.device and d.epoch = scores.epoch
    and scores.seq between d.first and d.last
))"""
# Consecutive seqs have the same difference to their rank: each such island is one interval.
# The largest seq is not enough: a later event may be sealed before an earlier one.
ISLANDS = """
    select device, epoch, min({number}), max({number}) from (
        select device, epoch, {number},
               {number} - row_number() over (partition by device, epoch order by {number}) as island
        from {table} where partition = ? and "commit" > ? and {only}
    ) group by device, epoch, island order by device, epoch, min({number})
"""
NEWEST = """
    select device, epoch_us(max("time")), epoch_us(max("window"))
    from scores where partition = ? and "commit" > ? group by device
"""
LAST_WINDOWS = """
    select * from scores where partition = ?
    qualify epoch_us("window") > max(epoch_us("window")) over (partition by device) - ?
"""
DECLARED = """
    select device, epoch, first, last, reason
    from drops where partition = ? and "commit" > ? order by "commit"
"""
# All revisions of each device's last windows with drift. `coalesce` instead of `is not null`, which
# DuckDB pushes down to Arrow, where rows of files without the column pass.
LAST_DRIFT = f"""
    select device, epoch_us("window"), drift
    from scores where partition = ? and "commit" > ? and coalesce(drift, '') <> ''
    qualify dense_rank() over (partition by device order by "window" desc) <= {WINDOWS}
    order by device, "window", revision
"""
