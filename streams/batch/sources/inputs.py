"""The input of a job: the files that are named, and what must be right before it is submitted."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pyarrow as pa

from streams.batch.progress import PlannedFile, Shard
from streams.batch.rows import Rows
from streams.batch.sources import tables, text
from streams.batch.sources.places import find, holds, suffix_of
from streams.batch.sources.selection import TYPES, check_where, kinds_of, moment_us, used_columns
from streams.batch.sources.tables import (
    KINDS,
    LOG,
    delta_files,
    opened,
    opened_input,
    refuse_missing,
)
from streams.batch.sources.text import MODEL_INPUT, RECORD_ID, first_objects
from streams.batch.specification import EVER, Columns, InputFormat, Named, Settings, Typed
from streams.contract.errors import UsageError
from streams.contract.task import Segment, Task
from streams.contract.task.channels import given

FORMATS: dict[str, InputFormat] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
SEGMENT, TIME, DEVICE = "segment", "time", "device"
FIRST = " in its first lines"
READINGS = (DEVICE, "begin", TIME)  # of the output of readings; `id` is that of the device
OURS = frozenset(
    {"id", "file", "row", "model", "outputs", "class", "probability", "label", "correct", "error",
     "reason"}
)  # fmt: skip


def find_inputs(named: Sequence[str]) -> tuple[list[Named], InputFormat]:
    """Return the files, folders, globs, tables and URLs that are named as files, each once, and
    their format; raise UsageError for what is missing, and for several formats."""
    found: dict[str, Named] = {}
    kinds: set[InputFormat] = set()
    for place in named:
        if holds(place, LOG):
            files = delta_files(place)
            kinds.add("delta")
        else:
            files = [Named(name=name, path=path) for name, path in find(place, _fits)]
            kinds |= {_format_of(file) for file in files}
            if not files:
                raise UsageError(f"{place}: no such file, or no {', '.join(FORMATS)} file in it")
        for file in files:
            found.setdefault(file.path, file)
    if len(kinds) > 1:
        raise UsageError(f"the input is {' and '.join(sorted(kinds))}: make a job of each")
    files, chosen = list(found.values()), kinds.pop()
    return files, "bedrock" if chosen == "jsonl" and _is_bedrock(files[0]) else chosen


def _fits(path: str) -> bool:
    return suffix_of(path) in FORMATS


def _format_of(file: Named) -> InputFormat:
    kind = FORMATS.get(suffix_of(file.path))
    if kind is None:
        raise UsageError(f"{file.name}: the input must be {', '.join(FORMATS)}")
    return kind


def _is_bedrock(file: Named) -> bool:
    rows = head_of("jsonl", file).rows
    return bool(rows) and {RECORD_ID, MODEL_INPUT} <= rows[0].keys()


class Head(NamedTuple):
    """What a file says before it is read: its columns in their order; of a table their types, of a
    text its first rows."""

    name: str
    columns: list[str]
    schema: pa.Schema | None
    rows: list[dict[str, Any]]


def head_of(kind: InputFormat, file: Named) -> Head:
    """Return the head of a file; raise UsageError, by name, if it cannot be read."""
    if kind in KINDS:
        with opened_input(file) as table:
            return Head(file.name, list(table.schema.names), table.schema, [])
    columns, rows = first_objects(kind, file.name, file.path)
    return Head(file.name, columns, None, rows)


def columns_of(
    task: Task,
    kind: InputFormat,
    files: Sequence[Named],
    wanted: Settings,
    *,
    teaches: bool = False,
) -> Columns:
    """Return the columns to read, of segments or of readings; raise UsageError where the input
    cannot have them, or has them in other types. teaches: a teacher answers."""
    if wanted.device is not None and (wanted.rows == "readings" or not teaches):
        raise UsageError("--device is for segments that a teacher answers")
    head = head_of(kind, files[0])
    if wanted.rows == "segments":
        if teaches and wanted.time is None:
            raise UsageError("a teacher answers windows of a device: name --time and --device, "
                             "or --as readings")  # fmt: skip
        columns = choose_columns(task, kind, head, wanted)
        check_files(task, kind, files, with_keys(columns) if teaches else columns)
        return columns
    if clash := sorted(set(wanted.keep) & set(READINGS)):
        raise UsageError(f"--keep {clash[0]}: rows of readings have that column anyway")
    device = wanted.id
    if device is None and DEVICE in head.columns:
        device = DEVICE
    named = list(wanted.columns or ([] if wanted.drop else given(task.channels)))
    more = {"columns": named, "id": device, "time": wanted.time or TIME}
    columns = choose_columns(one_sample(task), kind, head, wanted.replace(**more))
    check_files(one_sample(task), kind, files, as_read(columns))
    return columns


def one_sample(task: Task) -> Task:
    """Return the task of which a segment is one reading, as it is given."""
    return replace(task, channels=tuple(given(task.channels)), segment=Segment(samples=1, hop=1))


def as_read(columns: Columns) -> Columns:
    """Return the columns of readings as they are read: the time too, and every reading of the
    device whatever is selected, because a segment needs those before it."""
    keep = list(dict.fromkeys([*columns.keep, str(columns.time)]))
    return columns.replace(keep=keep, from_us=-EVER, to_us=EVER, whole=True)


def with_keys(columns: Columns) -> Columns:
    """Return the columns as a teacher's rows are read: device and time are carried along."""
    more = [name for name in (columns.device, columns.time) if name is not None]
    return columns.replace(keep=list(dict.fromkeys([*columns.keep, *more])))


def choose_columns(task: Task, kind: InputFormat, head: Head, wanted: Settings) -> Columns:
    """Return the columns to read; raise UsageError where the input cannot have them."""
    keep = list(dict.fromkeys(wanted.keep))
    if clash := sorted(set(keep) & OURS):
        raise UsageError(f"--keep {clash[0]}: the output has a column of that name, rename yours")
    start, stop = _moment(wanted.start, -EVER), _moment(wanted.until, EVER)
    if (wanted.start or wanted.until) and wanted.time is None:
        raise UsageError("--from and --until need --time, the column of the event time")
    if start >= stop:
        raise UsageError(f"--from {wanted.start} is not before --until {wanted.until}")
    names, per_channel = _segment(task, head, wanted, keep)
    return Columns(
        segment=names,
        per_channel=per_channel,
        id=RECORD_ID if kind == "bedrock" and wanted.id is None else wanted.id,
        label=wanted.label_column,
        keep=keep,
        device=wanted.device,
        where=wanted.where,
        typed=[] if wanted.where is None else _where_columns(kind, head, wanted.where),
        time=wanted.time,
        from_us=start,
        to_us=stop,
    )


def _segment(task: Task, head: Head, wanted: Settings, keep: list[str]) -> tuple[list[str], bool]:
    """Return the columns of the segment, and whether each is one number."""
    channels, samples = task.segment_shape
    width = channels * samples
    names = list(wanted.columns)
    if wanted.drop:
        if names:
            raise UsageError("--drop and --columns: name either what is left out, or what is read")
        named = (wanted.id, wanted.label_column, wanted.time, wanted.device)
        others = {*wanted.drop, *keep, *named}
        names = [name for name in head.columns if name not in others]
    elif not names and samples == 1 and set(task.channels) <= set(head.columns):
        names = list(task.channels)
    if len(names) == width and (width > 1 or wanted.drop or names == list(task.channels)):
        return names, True
    if len(names) > 1 or wanted.drop:
        raise UsageError(
            f"{len(names)} columns ({','.join(names)[:100]}): name one list column, or {width} "
            "columns, one a number"
        )
    if not names and head.columns and SEGMENT not in head.columns:
        raise UsageError(
            f"{head.name} has no column {SEGMENT!r}; it has {', '.join(head.columns)[:200]}. Name "
            "the columns of a segment by --columns; rows of single readings need --as readings"
        )
    return names or [SEGMENT], False


def _moment(text: str | None, default: int) -> int:
    if text is None:
        return default
    try:
        return moment_us(text)
    except (ValueError, OverflowError) as exc:
        raise UsageError(f"{text}: write an event time as 2026-03-01 or 2026-03-01T08:00Z") from exc


def _where_columns(kind: InputFormat, head: Head, where: str) -> list[Typed]:
    names = used_columns(where, head.columns)
    if head.schema is not None:
        return [Typed(name=name, kind="text") for name in names]
    typed = kinds_of(names, head.rows, texts=kind == "csv")
    check_where(where, pa.schema([(one.name, TYPES[one.kind]) for one in typed]), head.name)
    return typed


def check_files(task: Task, kind: InputFormat, files: Sequence[Named], columns: Columns) -> None:
    """Raise UsageError, by name, for a file that lacks a column or has one of a wrong type."""
    kept: dict[str, tuple[pa.DataType, str]] = {}
    everywhere: list[str] = []
    for head in (head_of(kind, file) for file in files):
        if head.schema is not None:
            tables.check(task, head.name, head.schema, columns, kept)
            continue
        always = columns.read if kind == "csv" else columns.segment
        needed = always if columns.id is None else [*always, columns.id]
        if head.columns:
            refuse_missing(head.name, needed, head.columns, FIRST)
        everywhere += head.columns
    if everywhere:  # a label or another value may be in some lines only
        refuse_missing(files[0].name, columns.read, sorted(set(everywhere)), FIRST)


def read_shard(
    task: Task,
    kind: InputFormat,
    file: PlannedFile,
    shard: Shard,
    columns: Columns,
) -> Iterator[Rows]:
    """Yield the rows of a shard in batches."""
    if kind in KINDS:
        return tables.read_shard(task, file, shard, columns)
    return text.read_shard(task, kind, file, shard, columns)


def kept_fields(kind: InputFormat, file: Named | PlannedFile, columns: Columns) -> list[pa.Field]:
    """Return the columns that are carried over from a file; those of text formats are text."""
    if not columns.keep or kind not in KINDS:
        return [pa.field(name, pa.string()) for name in columns.keep]
    with opened(file) as table:
        return [table.schema.field(name) for name in columns.keep]
