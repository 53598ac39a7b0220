"""Rows of text files: lines of JSON Lines, those of Bedrock, records of CSV; each of bounded size.

A line ends with a line feed, the last one also with the file. Lines of white space alone are no
rows. A CSV record is a line, or several where a quoted cell holds line feeds.
"""

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import IO, Any

import numpy as np
import pyarrow as pa

from streams.batch.progress import PlannedFile, Shard
from streams.batch.rows import (
    BATCH_BYTES,
    RowProblem,
    Rows,
    as_segments,
    batch_rows,
    note_labels,
    numbers_of,
    plain,
    refuse_unlike_numbers,
)
from streams.batch.sources.places import open_binary
from streams.batch.sources.selection import left_of, select, typed_table
from streams.batch.specification import Columns, InputFormat
from streams.contract.errors import UsageError
from streams.contract.task import Task
from streams.contract.task.channels import Category

MAX_LINE_BYTES = 100_000_000
LOOKED_AT = 100  # rows of a file that are looked at for a column
BOM = b"\xef\xbb\xbf"
RECORD_ID, MODEL_INPUT = "recordId", "modelInput"

csv.field_size_limit(MAX_LINE_BYTES)

Raw = bytes | list[str] | RowProblem  # a line, the cells of a record, or why it is none
Seen = Callable[[bytes], object]


def rows_in(kind: InputFormat, file: IO[bytes], seen: Seen = bool) -> Iterator[tuple[int, Raw]]:
    """Yield the rows of a file from its position on, each with the offset behind it; `seen` gets
    all bytes. Raise UsageError for a line that is too long."""
    if kind == "csv":
        yield from _records(file, seen)
        return
    for end, line in _lines(file, seen):
        if line.strip():
            yield end, line


def _lines(file: IO[bytes], seen: Seen) -> Iterator[tuple[int, bytes]]:
    end = file.tell()
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise UsageError(f"{file.name}: a line has more than {MAX_LINE_BYTES:,} bytes")
        seen(line)
        end += len(line)
        yield end, line.removeprefix(BOM) if end == len(line) else line


def _records(file: IO[bytes], seen: Seen) -> Iterator[tuple[int, Raw]]:
    end, blank = 0, False

    def lines() -> Iterator[str]:  # csv.reader asks for as many as a record has
        nonlocal end, blank
        for here, line in _lines(file, seen):
            end, blank = here, not line.strip()
            yield line.decode(errors="surrogateescape")  # what is no UTF-8 is refused by its row

    reader = csv.reader(lines(), strict=True)
    while True:
        try:
            found = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            yield end, RowProblem("undecodable", f"{exc}"[:200])
            continue
        if not blank:
            yield end, found


# --- objects --------------------------------------------------------------------------------------


def object_of(kind: InputFormat, header: list[str], raw: Raw) -> dict[str, Any]:
    """Return a row by its columns: of CSV text, an empty cell as None; raise RowProblem if it is no
    row."""
    if isinstance(raw, RowProblem):
        raise raw
    if isinstance(raw, list):
        return _record(header, raw)
    try:
        found = json.loads(raw.decode())
        if b"\\u" in raw:  # half a surrogate pair has no UTF-8
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise RowProblem("undecodable", f"{exc}"[:200]) from exc
    if not isinstance(found, dict):
        raise RowProblem("undecodable", f"the line is a {type(found).__name__}, not an object")
    return _of_bedrock(found) if kind == "bedrock" else found


def _of_bedrock(found: dict[str, Any]) -> dict[str, Any]:
    """Return Bedrock's `{"recordId": ..., "modelInput": {...}}` as one object."""
    inside = found.get(MODEL_INPUT)
    if not isinstance(inside, dict):
        raise RowProblem("missing", f"{MODEL_INPUT!r} is no object")
    return {**inside, RECORD_ID: found.get(RECORD_ID), MODEL_INPUT: inside}


def _record(header: list[str], cells: list[str]) -> dict[str, Any]:
    try:
        "".join(cells).encode()
    except ValueError as exc:
        raise RowProblem("undecodable", "the record is not UTF-8") from exc
    if len(cells) != len(header):
        text = f"{len(cells)} cells, the header has {len(header)}"
        raise RowProblem("undecodable", text)
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def header_of(kind: InputFormat, file: IO[bytes]) -> list[str]:
    """Return the names of a CSV file's columns, and leave the file behind them; nothing for other
    formats, and files without a row. Raise RowProblem for a header that is none."""
    if kind != "csv":
        return []
    for end, names in rows_in(kind, file):
        if isinstance(names, RowProblem):
            raise names
        texts = [str(name) for name in names]
        if len(set(texts)) != len(texts) or not all(name.strip() for name in texts):
            raise RowProblem("undecodable", "the header has a name twice, or none for a column")
        file.seek(end)
        return list(_record(texts, texts))
    return []


def first_objects(
    kind: InputFormat, name: str, path: str
) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns of a file and its first rows, those that are none left out; raise
    UsageError for a file that cannot be read."""
    found: list[dict[str, Any]] = []
    try:
        with open_binary(path) as file:
            header = header_of(kind, file)
            for _, raw in islice(rows_in(kind, file), LOOKED_AT):
                try:
                    found.append(object_of(kind, header, raw))
                except RowProblem:
                    continue
    except OSError as exc:
        raise UsageError(f"{name} cannot be read: {exc.strerror or exc}") from exc
    except RowProblem as problem:
        raise UsageError(f"{name} has no header of column names: {problem.reason}") from problem
    return header or list(dict.fromkeys(key for row in found for key in row)), found


def read_shard(
    task: Task, kind: InputFormat, file: PlannedFile, shard: Shard, columns: Columns
) -> Iterator[Rows]:
    """Yield the rows of a shard in batches."""
    objects, problems = list[dict[str, Any]](), dict[int, RowProblem]()
    first, begin = shard.first_row, shard.start
    with open_binary(file.path) as opened:
        header = header_of(kind, opened)
        opened.seek(shard.start)
        for end, raw in rows_in(kind, opened):
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
    chosen, undecided = np.ones(len(objects), bool), dict(problems)
    if columns.where or columns.dated:
        table = typed_table(columns, objects, undecided)
        chosen = select(columns, table, undecided)
    place = np.arange(len(objects)) if columns.whole else np.flatnonzero(chosen)
    problems = problems if columns.whole else undecided
    width = int(np.prod(task.segment_shape))
    numbers, ids, left = np.zeros((len(place), width)), list[str | None](), dict[int, RowProblem]()
    for i, old in enumerate(place.tolist()):
        identity = None
        try:
            identity = _identity(objects[old], columns)
            numbers[i] = _numbers(task, objects[old], columns, texts=texts)
        except RowProblem as problem:
            problems.setdefault(old, problem)
        ids.append(identity)
        if old in problems:
            left[i] = problems[old]
    rows = Rows(first + place, as_segments(numbers, task), problems=left)
    rows.excluded, rows.ids = len(objects) - len(place), None if columns.id is None else ids
    rows.left = left_of(chosen, undecided) if columns.whole else {}
    for name in columns.keep:
        values = [objects[i].get(name) for i in place]
        rows.kept[name] = pa.array(values if texts else map(_json_text, values), pa.string())
    refuse_unlike_numbers(rows)
    if columns.label is not None:
        labels = [objects[i].get(columns.label) for i in place]
        if texts:
            labels = [cell if cell in task.classes else _json(cell) for cell in labels]
        note_labels(task, rows, labels)
    return rows


def _json_text(value: Any) -> str | None:
    return None if value is None else json.dumps(plain(value), ensure_ascii=False)


def _identity(found: dict[str, Any], columns: Columns) -> str | None:
    if columns.id is None:
        return None
    value = found.get(columns.id)
    if type(value) not in (str, int):
        raise RowProblem("missing", f"{columns.id!r} is no text or whole number")
    return str(value)


def _numbers(task: Task, found: dict[str, Any], columns: Columns, *, texts: bool) -> list[float]:
    width = int(np.prod(task.segment_shape))
    if missing := next((name for name in columns.segment if name not in found), None):
        raise RowProblem("missing", f"there is no {missing!r}")
    values = [found[name] for name in columns.segment]
    if not columns.per_channel:
        return numbers_of(_json(values[0]) if texts else values[0], width)
    channels = [task.channels[at // task.segment.samples] for at in range(len(values))]
    pairs = zip(channels, values, strict=True)
    return numbers_of([_value(channel, cell, texts=texts) for channel, cell in pairs], width)


def _value(channel: str, cell: Any, *, texts: bool) -> Any:
    if isinstance(channel, Category):
        return channel.index_of(cell) if cell is None or type(cell) in (str, int, float) else cell
    return _number(cell) if texts else cell


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
