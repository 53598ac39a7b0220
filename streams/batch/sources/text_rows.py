"""JSON Lines and CSV: a shard as rows."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from streams.batch.records.documents import Columns, InputFormat, PlannedFile, Shard
from streams.batch.records.rows import (
    BATCH_BYTES,
    RowProblem,
    Rows,
    as_segments,
    batch_rows,
    note_labels,
    numbers_of,
    refuse_unlike_numbers,
)
from streams.batch.sources.places import open_binary
from streams.batch.sources.selection import select, typed_table
from streams.batch.sources.text import MAX_LINE_BYTES, header_of, object_of, rows_in
from streams.contract.task import Task


def read_shard(
    task: Task,
    kind: InputFormat,
    file: PlannedFile,
    shard: Shard,
    columns: Columns,
    max_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Rows]:
    """Yield the rows of a shard in batches."""
    objects, problems = list[dict[str, Any]](), dict[int, RowProblem]()
    first, begin = shard.first_row, shard.start
    with open_binary(file.path) as opened:
        header = header_of(kind, opened, max_bytes)
        opened.seek(shard.start)
        for end, raw in rows_in(kind, opened, max_bytes):
            try:
                objects.append(object_of(kind, header, raw))
            except RowProblem as problem:
                problems[len(objects)] = problem
                objects.append({})
            over = end >= shard.stop
            if over or len(objects) == batch_rows(task) or end - begin >= BATCH_BYTES:
                yield _rows(task, first, objects, columns, problems, texts=kind == "csv")
                first, begin, objects, problems = first + len(objects), end, [], {}
            if over:
                return


def _rows(
    task: Task,
    first: int,
    objects: list[dict[str, Any]],
    columns: Columns,
    problems: dict[int, RowProblem],
    *,
    texts: bool,
) -> Rows:
    """Return the rows that are selected; `texts`: the format has text alone."""
    chosen = np.ones(len(objects), bool)
    if not columns.selection.all:
        table = typed_table(columns.selection, objects, problems)
        chosen = select(columns.selection, table, problems)
    place = np.flatnonzero(chosen)
    left = {int(old): new for new, old in enumerate(place)}
    rows = _of_objects(
        task,
        [objects[i] for i in place],
        columns,
        {left[i]: problem for i, problem in problems.items()},
        texts=texts,
    )
    rows.numbers, rows.excluded = first + place, len(objects) - len(place)
    return rows


def _of_objects(
    task: Task,
    objects: list[dict[str, Any]],
    columns: Columns,
    problems: dict[int, RowProblem],
    *,
    texts: bool,
) -> Rows:
    width = int(np.prod(task.segment_shape))
    numbers = np.zeros((len(objects), width))
    ids: list[str | None] = []
    for i, found in enumerate(objects):
        identity = None
        try:
            identity = _identity(found, columns)
            numbers[i] = _numbers(found, columns, width, texts=texts)
        except RowProblem as problem:
            problems.setdefault(i, problem)
        ids.append(identity)
    rows = Rows(np.arange(len(objects)), as_segments(numbers, task), problems=problems)
    rows.ids = ids if columns.id is not None else None
    for name in columns.keep:
        values = [found.get(name) for found in objects]
        rows.kept[name] = pa.array(values, pa.string()) if texts else values
    refuse_unlike_numbers(rows)
    if columns.label is not None:
        labels = [found.get(columns.label) for found in objects]
        if texts:
            labels = [cell if cell in task.classes else _json(cell) for cell in labels]
        note_labels(task, rows, labels)
    return rows


def _identity(found: dict[str, Any], columns: Columns) -> str | None:
    if columns.id is None:
        return None
    value = found.get(columns.id)
    if type(value) not in (str, int):
        raise RowProblem("missing", f"{columns.id!r} is no text or whole number")
    return str(value)


def _numbers(found: dict[str, Any], columns: Columns, width: int, *, texts: bool) -> list[float]:
    if missing := next((name for name in columns.segment if name not in found), None):
        raise RowProblem("missing", f"there is no {missing!r}")
    values = [found[name] for name in columns.segment]
    if texts:
        values = [_number(cell) if columns.per_channel else _json(cell) for cell in values]
    return numbers_of(values if columns.per_channel else values[0], width)


def _number(cell: str | None) -> float | str | None:
    try:
        return cell if cell is None or "_" in cell else float(cell)  # Python takes 1_000
    except ValueError:
        return cell


def _json(cell: str | None) -> Any:
    """Return a list or number that is written as JSON, or the text as it is."""
    try:
        return cell if cell is None else json.loads(cell)
    except (ValueError, RecursionError):
        return cell
