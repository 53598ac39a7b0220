"""The seam to Parquet and Delta tables, in row groups that are read one after the other: checks of
a file's columns, and a shard as rows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streams.batch.progress import PlannedFile, Shard
from streams.batch.rows import (
    RowProblem,
    Rows,
    as_segments,
    batch_rows,
    note_labels,
    refuse_unlike_numbers,
    wrong_width,
)
from streams.batch.sources.places import is_url, open_binary
from streams.batch.sources.selection import check_where, left_of, select
from streams.batch.specification import Columns, Named
from streams.contract.errors import UsageError, line_of
from streams.contract.task import Task
from streams.contract.task.channels import UNKNOWN, Category
from streams.runtime.files import arrow_files

if TYPE_CHECKING:
    import pyarrow.dataset as ds  # loads pandas

Failures = (pa.ArrowException, OSError, EOFError, UnicodeDecodeError)  # of an unreadable file
KINDS = ("parquet", "delta")
LOG = "_delta_log"


class Table(NamedTuple):
    """An open file: the rows of each of its row groups, and what yields the rows of those from one
    to before another, some columns of at most so many rows at once."""

    schema: pa.Schema
    parts: list[int]
    batches: Callable[[int, int, list[str], int], Iterator[pa.RecordBatch]]


@contextmanager
def opened(file: Named | PlannedFile) -> Iterator[Table]:
    """Open a file; what Arrow raises is among Failures."""
    if file.table is not None:
        root, version, inside = file.table
        yield _fragment(*_fragments(root, version), inside)
        return
    source = open_binary(file.path) if is_url(file.path) else file.path
    with pq.ParquetFile(source, pre_buffer=False) as parquet:
        groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
        yield Table(
            parquet.schema_arrow,
            [group.num_rows for group in groups],
            lambda start, stop, columns, rows: parquet.iter_batches(
                rows, list(range(start, stop)), columns=columns
            ),
        )


@contextmanager
def opened_input(file: Named | PlannedFile) -> Iterator[Table]:
    """Open a file before it is scored; raise UsageError, by name, if that cannot be read."""
    try:
        with opened(file) as table:
            yield table
    except Failures as exc:
        raise UsageError(f"{file.name} cannot be read as Parquet: {line_of(exc)}") from exc


# --- Delta tables ---------------------------------------------------------------------------------


def delta_files(where: str) -> list[Named]:
    """Return the data files of a table's newest version, by path; raise UsageError for a table that
    cannot be read."""
    root = where.rstrip("/") if is_url(where) else str(Path(where).resolve())
    version, (_, found) = _newest(root, where)
    return [
        Named(name=f"{where.rstrip('/')}/{inside}", path=f"{root}/{inside}",
              table=(root, version, inside))
        for inside in sorted(found)
    ]  # fmt: skip


Fragments = tuple[pa.Schema, "dict[str, ds.ParquetFileFragment]"]


def _fragment(schema: pa.Schema, found: "dict[str, ds.ParquetFileFragment]", inside: str) -> Table:
    """Return a data file with the table's columns: those of its partition have one value."""

    def batches(start: int, stop: int, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        part = fragment.subset(row_group_ids=list(range(start, stop)))
        read = part.to_batches(schema=schema, columns=columns, batch_size=rows, batch_readahead=1)
        yield from (batch for batch in read if batch.num_rows)

    fragment = found[inside]
    return Table(schema, [group.num_rows for group in fragment.row_groups], batches)


def _newest(root: str, where: str) -> tuple[int, Fragments]:
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError as exc:
        raise UsageError(f"{where} needs deltalake: pip install 'tidewheel[batch]'") from exc
    try:
        version = DeltaTable(root).version()
        return version, _fragments(root, version)
    except (DeltaError, OSError, pa.ArrowException) as exc:
        raise UsageError(f"{where} cannot be read as a Delta table: {line_of(exc)}") from exc


@cache
def _fragments(root: str, version: int) -> Fragments:
    """Return the columns and the data files of a table at a version."""
    from deltalake import DeltaTable

    found = DeltaTable(root, version=version).to_pyarrow_dataset(filesystem=arrow_files(root))
    return found.schema, {fragment.path: fragment for fragment in found.get_fragments()}


def check(
    task: Task,
    name: str,
    schema: pa.Schema,
    columns: Columns,
    kept: dict[str, tuple[pa.DataType, str]],
) -> None:
    """Raise UsageError if the columns of a file do not fit; `kept` are the types of those that are
    carried over, with the first file that has them."""
    refuse_missing(name, columns.read, schema.names)
    if problems := list(_type_problems(task, schema, columns)):
        raise UsageError(f"{name}: {'; '.join(problems)[:500]}")
    if columns.where is not None:
        seen = pa.schema([schema.field(column.name) for column in columns.typed])
        check_where(columns.where, seen, name)
    for column in columns.keep:
        found = schema.field(column).type
        before, where = kept.setdefault(column, (found, name))
        if found != before:
            raise UsageError(f"--keep {column}: {before} in {where}, {found} in {name}")


def refuse_missing(
    name: str, columns: Sequence[str], found: Sequence[str], where: str = ""
) -> None:
    """Raise UsageError, by name, for all columns that a file does not have once."""
    if missing := [repr(column) for column in columns if found.count(column) != 1]:
        has = ", ".join(found)[:200]
        raise UsageError(f"{name} has no column {', '.join(missing)[:300]}{where}; it has {has}")


def _type_problems(task: Task, schema: pa.Schema, columns: Columns) -> Iterator[str]:
    width = int(np.prod(task.segment_shape))
    for column in columns.segment:
        found = schema.field(column).type
        if columns.per_channel:
            category = isinstance(_channel(task, columns, column), Category)
            if not _is(found, NUMBER) and not (category and _named(found)):
                yield f"column {column!r} is {found}, it must be numbers"
        elif not _is(found, LIST) or not _is(found.value_type, NUMBER):
            yield f"column {column!r} is {found}, a segment must be a list of numbers"
        elif pa.types.is_fixed_size_list(found) and found.list_size != width:
            yield f"column {column!r} has {found.list_size} numbers, a segment has {width}"
    identity, time = columns.id, columns.time
    if identity is not None and not _named(found := schema.field(identity).type):
        yield f"--id {identity} is {found}, it must be text or whole numbers"
    found = schema.field(time).type if time in columns.read else None
    if found is not None and not (_named(found) or _is(found, DATED)):
        yield f"--time {time} is {found}, it must be a timestamp, a date, text or microseconds"


NUMBER = (pa.types.is_integer, pa.types.is_floating)
NAME = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
DATED = (pa.types.is_timestamp, pa.types.is_date)
LIST = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def _is(kind: pa.DataType, any_of: tuple[Callable[[pa.DataType], bool], ...]) -> bool:
    return any(fits(kind) for fits in any_of)


def _named(kind: pa.DataType) -> bool:
    return _is(kind.value_type if pa.types.is_dictionary(kind) else kind, NAME)


def read_shard(task: Task, file: PlannedFile, shard: Shard, columns: Columns) -> Iterator[Rows]:
    """Yield the rows of a shard in batches."""
    first = shard.first_row
    with opened(file) as table:
        for batch in table.batches(shard.start, shard.stop, columns.read, batch_rows(task)):
            yield _rows(task, first, batch, columns)
            first += batch.num_rows


def _rows(task: Task, first: int, batch: pa.RecordBatch, columns: Columns) -> Rows:
    numbers = np.arange(first, first + batch.num_rows)
    problems: dict[int, RowProblem] = {}
    left: dict[int, RowProblem | None] = {}
    whole = batch.num_rows
    if columns.where or columns.dated:
        found: dict[int, RowProblem] = {}
        chosen = select(columns, batch, found)
        if columns.whole:
            left = left_of(chosen, found)
        else:
            batch, numbers = batch.filter(pa.array(chosen)), numbers[chosen]
            place = np.cumsum(chosen) - 1  # of a row among those that are left
            problems = {int(place[i]): problem for i, problem in found.items()}
    width = int(np.prod(task.segment_shape))
    arrays = [batch.column(name) for name in columns.segment]
    if columns.per_channel:
        values, wrong = _of_columns(task, arrays, columns)
    else:
        values, wrong = _of_lists(arrays[0], width)
    rows = Rows(numbers, as_segments(values, task), problems={**wrong, **problems})
    rows.excluded, rows.left = whole - len(rows), left
    rows.kept = {name: batch.column(name) for name in columns.keep}
    refuse_unlike_numbers(rows)
    if columns.id is not None:
        rows.ids = batch.column(columns.id).cast(pa.string()).to_pylist()
        for i, identity in enumerate(rows.ids):
            if identity is None:
                rows.problems.setdefault(i, RowProblem("missing", f"{columns.id!r} is null"))
    if columns.label is not None:
        note_labels(task, rows, batch.column(columns.label).to_pylist())
    return rows


def _channel(task: Task, columns: Columns, column: str) -> str:
    """Return the channel that a column has a value of."""
    return task.channels[columns.segment.index(column) // task.segment.samples]


def _of_columns(
    task: Task, arrays: list[pa.Array], columns: Columns
) -> tuple[np.ndarray, dict[int, RowProblem]]:
    """Return the numbers (n, width) of a column a number, and what is null."""
    problems: dict[int, RowProblem] = {}
    found = []
    for name, array in zip(columns.segment, arrays, strict=True):
        channel = _channel(task, columns, name)
        if isinstance(channel, Category):
            found.append(_indices(channel, array))
            continue
        found.append(_floats(array))
        for i in np.flatnonzero(_nulls(array)).tolist():
            problems.setdefault(i, RowProblem("null", f"{name!r} is null"))
    return np.stack(found, axis=1), problems


def _indices(channel: Category, array: pa.Array) -> np.ndarray:
    """Return the index of each value; that of null is the unknown's."""
    coded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    index = [float(channel.index_of(value)) for value in coded.dictionary.to_pylist()]
    rows = coded.indices.fill_null(len(index)).to_numpy()
    return np.asarray(np.array([*index, float(UNKNOWN)])[rows])


def _of_lists(array: pa.Array, width: int) -> tuple[np.ndarray, dict[int, RowProblem]]:
    """Return the numbers (n, width) of a list column, zeros where a list has a problem."""
    lengths = pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False)
    lengths = np.where(_nulls(array), -1, lengths)
    if (lengths == width).all() and not (inside := array.flatten()).null_count:
        return _numbers(inside).reshape(len(array), width), {}
    problems = {
        int(i): wrong_width(int(lengths[i]), width)
        if lengths[i] >= 0
        else RowProblem("null", "the segment is null")
        for i in np.flatnonzero(lengths != width)
    }
    good = np.flatnonzero(lengths == width)
    inside = array.filter(pa.array(lengths == width)).flatten()
    numbers = np.zeros((len(array), width))
    numbers[good] = _floats(inside).reshape(len(good), width)
    for i in good[_nulls(inside).reshape(len(good), width).any(axis=1)].tolist():
        problems[i] = RowProblem("null", "a number of the segment is null")
    return numbers, problems


def _numbers(array: pa.Array) -> np.ndarray:
    """Return numbers without a null: float32 as they are, not copied, others as float64."""
    return array.to_numpy() if pa.types.is_float32(array.type) else _floats(array)


def _nulls(array: pa.Array) -> np.ndarray:
    found: np.ndarray = pc.is_null(array).to_numpy(zero_copy_only=False)
    return found


def _floats(array: pa.Array) -> np.ndarray:
    """Return numbers as float64, NaN where there is none."""
    return np.asarray(array.to_numpy(zero_copy_only=False), np.float64)
