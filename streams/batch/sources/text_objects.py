"""Rows of text formats as objects: JSON Lines, those of Bedrock, and CSV records."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streams.batch.records.documents import Columns, InputFormat
from streams.batch.records.rows import RowProblem
from streams.batch.sources.text_lines import MAX_LINE_BYTES, Line
from streams.contract.task import Task

RECORD_ID, MODEL_INPUT = "recordId", "modelInput"
DELIMITERS = {"csv": ",", "tsv": "\t"}


@dataclass(frozen=True)
class Decoder:
    """What makes an object of a line, and raises RowProblem for one that is none; and what makes
    values of its segment and its label."""

    row: Callable[[Line], dict[str, Any]]
    segment: Callable[[Any], Any]
    label: Callable[[Any], Any]
    texts: bool  # the format has text alone


def decoder_of(
    kind: InputFormat, task: Task, columns: Columns, header: list[str], max_bytes: int
) -> Decoder:
    """Return the decoder of a file; `header` are the names of a CSV file's columns."""
    if kind in DELIMITERS:
        return Decoder(
            lambda line: plain_object(header, cells_of(line, kind, max_bytes)),
            _number if columns.per_channel else _json,
            lambda cell: cell if cell in task.classes else _json(cell),
            texts=True,
        )
    if kind == "bedrock":
        return Decoder(
            lambda line: bedrock_object(object_of(line, max_bytes)), _same, _same, texts=False
        )
    return Decoder(lambda line: object_of(line, max_bytes), _same, _same, texts=False)


def _same(value: Any) -> Any:
    return value


def object_of(line: Line, max_bytes: int = MAX_LINE_BYTES) -> dict[str, Any]:
    """Return the object of a line of JSON; raise RowProblem if it is none."""
    if line is None:
        raise too_long(max_bytes)
    try:
        found = json.loads(line.decode())
        if b"\\u" in line:  # half a surrogate pair has no UTF-8
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise RowProblem("undecodable", f"{exc}"[:200]) from exc
    if not isinstance(found, dict):
        raise RowProblem("undecodable", f"the line is a {type(found).__name__}, not an object")
    return found


def bedrock_object(found: dict[str, Any]) -> dict[str, Any]:
    """Return Bedrock's `{"recordId": ..., "modelInput": {...}}` as one object."""
    inside = found.get(MODEL_INPUT)
    if not isinstance(inside, dict):
        raise RowProblem("missing", f"{MODEL_INPUT!r} is no object")
    return {**inside, RECORD_ID: found.get(RECORD_ID), MODEL_INPUT: inside}


def cells_of(record: Line, kind: InputFormat, max_bytes: int = MAX_LINE_BYTES) -> list[str]:
    """Return the cells of a CSV record; raise RowProblem if it is none."""
    if record is None:
        raise too_long(max_bytes)
    try:
        text = record.decode()
        (cells,) = csv.reader([text], delimiter=DELIMITERS[kind], strict=True)
    except (ValueError, csv.Error) as exc:
        raise RowProblem("undecodable", f"{exc}"[:200]) from exc
    return cells


def plain_object(header: list[str], cells: list[str]) -> dict[str, Any]:
    """Return a record by its columns, empty cells as None; raise RowProblem for another width."""
    if len(cells) != len(header):
        text = f"{len(cells)} cells, the header has {len(header)}"
        raise RowProblem("undecodable", text)
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def too_long(max_bytes: int) -> RowProblem:
    return RowProblem("too-long", f"the line has more than {max_bytes:,} bytes")


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
