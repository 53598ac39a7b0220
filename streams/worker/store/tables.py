"""Where the store is, and its Delta tables: their columns, opening one, rows of drops and labels.

    scores   one row per scored event (rows.store_schema)
    drops    one row per interval of events that will never be scored, with the reason
    labels   one row per true label that became known after its events were answered
    revised  one row per label of a stored event that a report on `windows` has counted since
    aged     one row per epoch and day of events whose rows were deleted (retention.py)

All are partitioned by day and Kafka partition, in a folder, or under a URL of an object store
(`s3://bucket/prefix`).

Several workers on several machines can share a URL. The fence then needs a server that writes an
object only if there is none of its name (S3: If-None-Match), as Delta's log has it: of two workers
that write the same version one fails, whatever either believed. S3's credentials are in the
environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`), or in a file
(`AWS_SHARED_CREDENTIALS_FILE`); beside them `AWS_REGION` and `AWS_ENDPOINT_URL`.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from streams.contract.errors import PartitionLost, TidewheelError, UsageError, line_of
from streams.contract.events.batches import TIMESTAMP
from streams.runtime.files import arrow_files, open_store
from streams.worker.store.retention import AGED, aged_schema
from streams.worker.windows.partition import DeclaredDrop, NewLabels
from streams.worker.windows.rows import DAY_US, store_schema, stored_columns

Place = str | Path

OWNER = "task"  # the file with the id of the task version that the store is of


def place_of(text: str) -> Place:
    """Return a URL as it is, anything else as a path."""
    return text.rstrip("/") if "://" in text else Path(text)


def is_local(place: Place) -> bool:
    return isinstance(place, Path) or "://" not in place


def beside(place: Place, state: Path) -> Path:
    """Return the folder in which workers keep what is of one machine: their locks, and the folder
    that Faust wants. It is beside the store's folder, or in `state` where the store is a URL."""
    return (Path(place).parent if is_local(place) else state) / "workers"


def claim(place: Place, task: str) -> None:
    """Note which task version, by its id, the store is of; raise UsageError if it is another's: the
    partitions of two `events` cannot share a fence."""
    store = open_store(place)
    try:
        try:
            found = store.read(OWNER).decode(errors="replace")
        except FileNotFoundError:
            store.write(OWNER, task.encode())
            return
    except OSError as exc:
        raise TidewheelError(f"the store {place} cannot be used: {exc}") from exc
    if found != task:
        raise UsageError(f"the store {place} is of {found}, not of {task}: use another --store")


def table_at(place: Place, name: str) -> str:
    """Return where a table of the store is."""
    return f"{place}/{name}"


def options_of(place: Place) -> dict[str, str] | None:
    """Return what deltalake needs for a place; None for a folder."""
    if is_local(place):
        return None
    options = {"conditional_put": "etag", **_credentials()}
    if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        options["allow_http"] = "true"
    return options


def _credentials() -> dict[str, str]:
    """Return the credentials of a file, which deltalake does not read."""
    if "AWS_SHARED_CREDENTIALS_FILE" not in os.environ or "AWS_ACCESS_KEY_ID" in os.environ:
        return {}
    from botocore.session import Session

    found = Session().get_credentials()
    if found is None:
        raise UsageError("AWS_SHARED_CREDENTIALS_FILE: the file has no credentials")
    named = {"aws_access_key_id": found.access_key, "aws_secret_access_key": found.secret_key}
    return {**named, **({"aws_session_token": found.token} if found.token else {})}


def make_folder(where: str) -> None:
    """Make a table's folder; an object store needs none."""
    if is_local(where):
        Path(where).mkdir(parents=True, exist_ok=True)


def rows_in(table: DeltaTable, where: str, partition: int | None = None) -> ds.Dataset:
    """Return the rows of the version that `table` has loaded, which is at `where`, or those of one
    partition: a table has some hundred files of each, and each costs .2 ms."""
    files = None if partition is None else [("partition", "=", str(partition))]
    return table.to_pyarrow_dataset(filesystem=arrow_files(where), file_pruning_predicate=files)


def has_table(place: Place, name: str) -> bool:
    """Return whether the store has a table; raise TidewheelError if that cannot be asked."""
    if is_local(place):
        return (Path(place) / name / "_delta_log").is_dir()
    where = table_at(place, name)
    try:
        return DeltaTable.is_deltatable(where, options_of(place))
    except (DeltaError, OSError) as exc:
        raise TidewheelError(f"the store {where} cannot be read: {exc}") from exc


# --- tables ---------------------------------------------------------------------------------------

SCORES = "scores"
DROPS = "drops"
LABELS = "labels"
REVISED = "revised"
TABLES = (SCORES, DROPS, LABELS, REVISED)
APPLICATION = {
    SCORES: "events", DROPS: "drops", LABELS: "labels", REVISED: "revised", AGED: "aged",
}  # fmt: skip
KEEP = timedelta(days=1)  # how long the files of old versions remain readable


def drop_schema() -> pa.Schema:
    """Return the columns of `drops`; `day` is the day on which the drop was stored."""
    text, number = pa.string(), pa.int64()
    kinds = {"device": text, "epoch": text, "first": number, "last": number, "reason": text}
    return stored_columns(kinds)


def label_schema() -> pa.Schema:
    """Return the columns of `labels`: events of the device from `from` to `to` have this label, or
    the one of `event_epoch` and `event_seq`, or of `event_id`, alone; `number` counts the labels of
    an epoch of the device's queue of labels, or is their place in Kafka."""
    kinds = {
        "device": pa.string(), "epoch": pa.string(), "number": pa.int64(), "from": TIMESTAMP,
        "to": TIMESTAMP, "label": pa.list_(pa.float32()), "told": TIMESTAMP, "source": pa.string(),
        "event_epoch": pa.string(), "event_seq": pa.int64(), "event_id": pa.string(),
    }  # fmt: skip
    return stored_columns(kinds, optional=("from", "to", *EVENT))


def revised_schema() -> pa.Schema:
    """Return the columns of `revised`: an event of `scores`, the label that reports count since
    this commit; the revision that counted it, whose text is on one row of each; the commit of
    `scores` that has the event; and the day of this one: those of the events are many."""
    kinds = {
        "device": pa.string(), "epoch": pa.string(), "seq": pa.int64(), "window": TIMESTAMP,
        "label": pa.list_(pa.float32()), "revision": pa.int32(), "report": pa.binary(),
        "stored": pa.int64(),
    }  # fmt: skip
    return stored_columns(kinds, optional=("report",))


SCHEMAS = {
    SCORES: store_schema, DROPS: drop_schema, LABELS: label_schema, REVISED: revised_schema,
    AGED: aged_schema,
}  # fmt: skip


def open_table(place: Place, name: str) -> DeltaTable:
    """Open one of the SCHEMAS' tables, creating it if needed; raise TidewheelError on failure."""
    schema, where, options = SCHEMAS[name](), table_at(place, name), options_of(place)
    with translated(where):
        try:
            return DeltaTable(where, storage_options=options)
        except TableNotFoundError:
            make_folder(where)
        with suppress(CommitFailedError):  # another worker has just created it
            DeltaTable.create(
                where,
                schema,
                mode="ignore",
                partition_by=["day", "partition"],
                configuration={
                    "delta.checkpointInterval": "50",
                    "delta.logRetentionDuration": f"interval {KEEP.days} days",
                    "delta.deletedFileRetentionDuration": f"interval {KEEP.days} days",
                },
                storage_options=options,
            )
        return DeltaTable(where, storage_options=options)


def drop_rows(
    drops: Sequence[tuple[int, DeclaredDrop]], versions: Mapping[int, int], now_us: int
) -> pa.Table:
    """Return the rows of `drops` for (partition, declaration), stored at `now_us`."""
    rows = [
        {**vars(d.drop), "partition": p, "commit": versions[p], "day": now_us // DAY_US}
        for p, d in drops
    ]
    return pa.Table.from_pylist(rows, drop_schema())


TIMES, EVENT = ("from", "to", "told"), ("event_epoch", "event_seq", "event_id")


def label_rows(
    labels: Sequence[tuple[int, NewLabels]], versions: Mapping[int, int], now_us: int
) -> pa.Table:
    """Return the rows of `labels` for (partition, labels of a message), stored at `now_us`."""
    parts = []
    for partition, one in labels:
        batch, rows = one.labels, one.labels.rows
        n = rows.num_rows
        own = {name: rows.column(name) for name in (*TIMES, "source", *EVENT)}
        about = {
            "device": [batch.device] * n,
            "epoch": [batch.epoch] * n,
            "number": range(batch.first, batch.first + n),
            "label": rows.column("label").cast(pa.list_(pa.float32())),
            "partition": [partition] * n,
            "commit": [versions[partition]] * n,
            "day": [now_us // DAY_US] * n,
        }
        columns = {**own, **about}
        schema = label_schema()
        parts.append(pa.table([columns[name] for name in schema.names], schema=schema))
    return pa.concat_tables(parts)


# What deltalake says where another commit has the same application transaction: the fence. Any
# other conflict is with somebody else's work, such as commits in its place as often as it tries, or
# rows of another partition that were deleted meanwhile.
FENCED = re.compile(r"Concurrent transaction failed")


class Crowded(Exception):
    """Others' commits came first: the fence is to be looked at again. Never leaves the store."""


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Translate the libraries' errors to PartitionLost, Crowded and TidewheelError."""
    try:
        yield
    except CommitFailedError as exc:
        if FENCED.search(str(exc)):
            raise PartitionLost(f"the store {where}: another worker has committed: {exc}") from exc
        raise Crowded(line_of(exc)) from exc
    except (DeltaError, OSError) as exc:
        raise TidewheelError(f"the store {where} cannot be used: {line_of(exc)}") from exc
