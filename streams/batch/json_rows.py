"""JSON Lines: lines of bounded size, and a shard of them as rows.

A line ends with a line feed, the last one also with the file. Lines of white space alone are no
rows. A line that is longer than the limit is passed over in pieces: it is a row with a problem.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from streams.batch.documents import Columns, Shard
from streams.batch.rows import (
    BATCH_BYTES,
    RowProblem,
    Rows,
    as_segments,
    batch_rows,
    note_labels,
    numbers_of,
    refuse_unlike_numbers,
)
from streams.contract.task import Task

MAX_LINE_BYTES = 100_000_000
PIECE_BYTES = 1_000_000
BOM = b"\xef\xbb\xbf"

Line = bytes | None  # None: too long


def unseen(_piece: bytes) -> None:
    """Take a piece of the file without doing anything with it."""


def lines_of(
    file: IO[bytes], max_bytes: int, seen: Callable[[bytes], None] = unseen
) -> Iterator[tuple[int, Line]]:
    """Yield the rows of a file from its position on, each with the offset behind it; `seen` gets
    all bytes."""
    end = file.tell()
    while line := file.readline(max_bytes + 1):
        seen(line)
        end += len(line)
        whole = len(line) <= max_bytes or line.endswith(b"\n")
        piece = line
        while not whole and not piece.endswith(b"\n") and (piece := file.readline(PIECE_BYTES)):
            seen(piece)
            end += len(piece)
        if not whole:
            yield end, None
        elif line.strip():
            yield end, line.removeprefix(BOM) if end == len(line) else line


def object_of(line: Line, max_bytes: int = MAX_LINE_BYTES) -> dict[str, Any]:
    """Return the object of a line; raise RowProblem if it is none."""
    if line is None:
        raise RowProblem("too-long", f"the line has more than {max_bytes:,} bytes")
    try:
        found = json.loads(line.decode())
        if b"\\u" in line:  # half a surrogate pair has no UTF-8
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise RowProblem("undecodable", f"{exc}"[:200]) from exc
    if not isinstance(found, dict):
        raise RowProblem("undecodable", f"the line is a {type(found).__name__}, not an object")
    return found


def read_shard(
    task: Task, path: Path, shard: Shard, columns: Columns, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[Rows]:
    """Yield the rows of a shard in batches."""
    first, lines, size = shard.first_row, list[Line](), 0
    with path.open("rb") as file:
        file.seek(shard.start)
        for end, line in lines_of(file, max_bytes):
            lines.append(line)
            size += len(line or b"")
            if end >= shard.stop or len(lines) == batch_rows(task) or size >= BATCH_BYTES:
                yield _rows(task, first, lines, columns, max_bytes)
                first, lines, size = first + len(lines), [], 0
            if end >= shard.stop:
                return


def _rows(task: Task, first: int, lines: list[Line], columns: Columns, max_bytes: int) -> Rows:
    width = int(np.prod(task.segment_shape))
    numbers = np.zeros((len(lines), width))
    objects: list[dict[str, Any]] = []
    problems: dict[int, RowProblem] = {}
    ids: list[str | None] = []
    for i, line in enumerate(lines):
        found: dict[str, Any] = {}
        identity = None
        try:
            found = object_of(line, max_bytes)
            identity = _identity(found, columns)
            numbers[i] = _numbers(found, columns, width)
        except RowProblem as problem:
            problems[i] = problem
        objects.append(found)
        ids.append(identity)
    rows = Rows(first, as_segments(numbers, task), problems=problems)
    rows.ids = ids if columns.id is not None else None
    rows.kept = {name: [found.get(name) for found in objects] for name in columns.keep}
    refuse_unlike_numbers(rows)
    if columns.label is not None:
        note_labels(task, rows, [found.get(columns.label) for found in objects])
    return rows


def _identity(found: dict[str, Any], columns: Columns) -> str | None:
    if columns.id is None:
        return None
    value = found.get(columns.id)
    if type(value) not in (str, int):
        raise RowProblem("missing", f"{columns.id!r} is no text or whole number")
    return str(value)


def _numbers(found: dict[str, Any], columns: Columns, width: int) -> list[float]:
    if missing := next((name for name in columns.segment if name not in found), None):
        raise RowProblem("missing", f"there is no {missing!r}")
    values = [found[name] for name in columns.segment]
    return numbers_of(values if columns.per_channel else values[0], width)
