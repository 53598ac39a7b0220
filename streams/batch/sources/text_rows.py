"""JSON Lines and CSV: a shard as rows, and what can be said of a file from its first rows."""

from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

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
from streams.batch.sources.text_lines import (
    MAX_LINE_BYTES,
    Line,
    Seen,
    lines_of,
    records_of,
    unseen,
)
from streams.batch.sources.text_objects import (
    DELIMITERS,
    Decoder,
    bedrock_object,
    cells_of,
    decoder_of,
    object_of,
    plain_object,
)
from streams.contract.errors import UsageError
from streams.contract.task import Task

LOOKED_AT = 100  # rows of a file that are looked at for a column


def rows_in(
    kind: InputFormat, file: IO[bytes], max_bytes: int, seen: Seen = unseen
) -> Iterator[tuple[int, Line]]:
    """Yield the rows of a file from its position on, each with the offset behind it."""
    if kind in DELIMITERS:
        return records_of(file, max_bytes, seen, delimiter=DELIMITERS[kind])
    return lines_of(file, max_bytes, seen)


def header_of(kind: InputFormat, file: IO[bytes], max_bytes: int, seen: Seen = unseen) -> list[str]:
    """Return the names of a CSV file's columns, and leave the file behind them; nothing for other
    formats, and files without a row. Raise RowProblem for a header that is none."""
    if kind not in DELIMITERS:
        return []
    for end, record in rows_in(kind, file, max_bytes, seen):
        names = cells_of(record, kind, max_bytes)
        if len(set(names)) != len(names) or not all(name.strip() for name in names):
            raise RowProblem("undecodable", "the header has a name twice, or none for a column")
        file.seek(end)
        return names
    return []


def first_objects(
    kind: InputFormat, name: str, path: str
) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns of a file and its first rows, those that are none left out; raise
    UsageError for a file that cannot be read."""
    found: list[dict[str, Any]] = []
    try:
        with open_binary(path) as file:
            header = header_of(kind, file, MAX_LINE_BYTES)
            for _, line in islice(rows_in(kind, file, MAX_LINE_BYTES), LOOKED_AT):
                try:
                    if kind in DELIMITERS:
                        found.append(plain_object(header, cells_of(line, kind)))
                    else:
                        row = object_of(line)
                        found.append(bedrock_object(row) if kind == "bedrock" else row)
                except RowProblem:
                    continue
    except OSError as exc:
        raise UsageError(f"{name} cannot be read: {exc.strerror or exc}") from exc
    except RowProblem as problem:
        raise UsageError(f"{name} has no header of column names: {problem.reason}") from problem
    return header or list(dict.fromkeys(key for row in found for key in row)), found


def read_shard(
    task: Task,
    kind: InputFormat,
    file: PlannedFile,
    shard: Shard,
    columns: Columns,
    max_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Rows]:
    """Yield the rows of a shard in batches."""
    first, lines, size = shard.first_row, list[Line](), 0
    with open_binary(file.path) as opened:
        header = header_of(kind, opened, max_bytes)
        decoder = decoder_of(kind, task, columns, header, max_bytes)
        opened.seek(shard.start)
        for end, line in rows_in(kind, opened, max_bytes):
            lines.append(line)
            size += len(line or b"")
            if end >= shard.stop or len(lines) == batch_rows(task) or size >= BATCH_BYTES:
                yield _rows(task, first, lines, columns, decoder)
                first, lines, size = first + len(lines), [], 0
            if end >= shard.stop:
                return


def _rows(task: Task, first: int, lines: list[Line], columns: Columns, decoder: Decoder) -> Rows:
    objects, problems = list[dict[str, Any]](), dict[int, RowProblem]()
    for i, line in enumerate(lines):
        try:
            objects.append(decoder.row(line))
        except RowProblem as problem:
            objects.append({})
            problems[i] = problem
    chosen = np.ones(len(lines), bool)
    if not columns.selection.all:
        table = typed_table(columns.selection, objects, problems)
        chosen = select(columns.selection, table, problems)
    place = np.flatnonzero(chosen)
    left = {int(old): new for new, old in enumerate(place)}
    problems = {left[i]: problem for i, problem in problems.items()}
    rows = _of_objects(task, [objects[i] for i in place], columns, problems, decoder)
    rows.numbers, rows.excluded = first + place, len(lines) - len(place)
    return rows


def _of_objects(
    task: Task,
    objects: list[dict[str, Any]],
    columns: Columns,
    problems: dict[int, RowProblem],
    decoder: Decoder,
) -> Rows:
    width = int(np.prod(task.segment_shape))
    numbers = np.zeros((len(objects), width))
    ids: list[str | None] = []
    for i, found in enumerate(objects):
        identity = None
        try:
            identity = _identity(found, columns)
            numbers[i] = _numbers(found, columns, width, decoder)
        except RowProblem as problem:
            problems.setdefault(i, problem)
        ids.append(identity)
    rows = Rows(np.arange(len(objects)), as_segments(numbers, task), problems=problems)
    rows.ids = ids if columns.id is not None else None
    for name in columns.keep:
        values = [found.get(name) for found in objects]
        rows.kept[name] = pa.array(values, pa.string()) if decoder.texts else values
    refuse_unlike_numbers(rows)
    if columns.label is not None:
        labels = [decoder.label(found.get(columns.label)) for found in objects]
        note_labels(task, rows, labels)
    return rows


def _identity(found: dict[str, Any], columns: Columns) -> str | None:
    if columns.id is None:
        return None
    value = found.get(columns.id)
    if type(value) not in (str, int):
        raise RowProblem("missing", f"{columns.id!r} is no text or whole number")
    return str(value)


def _numbers(found: dict[str, Any], columns: Columns, width: int, decoder: Decoder) -> list[float]:
    if missing := next((name for name in columns.segment if name not in found), None):
        raise RowProblem("missing", f"there is no {missing!r}")
    values = [decoder.segment(found[name]) for name in columns.segment]
    return numbers_of(values if columns.per_channel else values[0], width)
