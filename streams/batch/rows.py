"""Rows of the input as arrays: segments, labels, and what is wrong with a row."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from streams.contract.errors import Retryable
from streams.contract.task import Task

BATCH_ROWS = 8192
BATCH_BYTES = 16_000_000
BAD_LABEL = "bad-label"  # a code of a row's problem
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def may_pass(error: BaseException) -> bool:
    """Return whether what failed may succeed later: a service or a disk, not the input."""
    if isinstance(error, OSError):
        return not isinstance(error, LASTING)
    cause = error.__cause__  # what a library raised, translated
    return isinstance(error, Retryable) or (isinstance(cause, OSError) and may_pass(cause))


class RowProblem(Exception):
    """Why a row has no answer: a code of docs/architecture/batch.md, and a reason for a person."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code, self.reason = code, reason


@dataclass
class Rows:
    """Rows of a file in their order.

    numbers   (n,) int64: the number of each row in its file
    segments  (n, channels, samples) float32; zeros where a row has a problem
    labels    (n, label_size) float32, NaN without a label; None where none are asked for
    ids       None where no column has them
    kept      the columns that are carried over; those of JSON Lines as JSON text
    problems  by index
    excluded  how many rows the selection has left out
    left      of readings, all of which are read, by index: those whose segments are not scored:
              None where `where` leaves them out, or why it cannot be evaluated
    readings  how many readings were cut into these rows
    broken    those of them that break a segment, by reason
    bad_labels  how many of them have a label that cannot be used
    examples  the first one of each reason, as `file:row`, and what is wrong with it
    outputs   (n, outputs) float32 of a teacher, zeros where a row has a problem; None without one
    """

    numbers: np.ndarray
    segments: np.ndarray
    labels: np.ndarray | None = None
    ids: list[str | None] | None = None
    kept: dict[str, pa.Array] = field(default_factory=dict)
    problems: dict[int, RowProblem] = field(default_factory=dict)
    excluded: int = 0
    left: dict[int, RowProblem | None] = field(default_factory=dict)
    readings: int = 0
    broken: dict[str, int] = field(default_factory=dict)
    bad_labels: int = 0
    examples: dict[str, str] = field(default_factory=dict)
    outputs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.segments)


def batch_rows(task: Task) -> int:
    """Return how many rows are read at once."""
    channels, samples = task.segment_shape
    return max(1, min(BATCH_ROWS, BATCH_BYTES // (8 * channels * samples)))


def numbers_of(value: object, width: int) -> list[float]:
    """Return a segment's numbers; raise RowProblem if `value` is no list of `width` numbers."""
    if value is None:
        raise RowProblem("null", "the segment is null")
    if not isinstance(value, list):
        raise RowProblem("not-numeric", f"the segment is a {type(value).__name__}, not a list")
    if len(value) != width:
        raise wrong_width(len(value), width)
    kinds = set(map(type, value))
    if type(None) in kinds:
        raise RowProblem("null", "a number of the segment is null")
    if not kinds <= {int, float}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds - {int, float}))
        raise RowProblem("not-numeric", f"the segment holds {names}")
    try:
        return [float(number) for number in value]
    except OverflowError:
        raise RowProblem("not-finite", "a number is too large for float32") from None


def wrong_width(found: int, width: int) -> RowProblem:
    return RowProblem("wrong-width", f"{found} numbers, a segment has {width}")


def as_segments(numbers: np.ndarray, task: Task) -> np.ndarray:
    """Return numbers (n, channels * samples) as segments (n, channels, samples) float32; too large
    ones become infinite, and any kind of NaN a NaN. Numbers of float32 are not copied."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(numbers, np.float32).reshape(len(numbers), *task.segment_shape)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers that JSON lacks, times and bytes become text."""
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def refuse_unlike_numbers(rows: Rows) -> None:
    """Note a problem for each segment that is not finite, and make it zeros."""
    finite = np.isfinite(rows.segments).all(axis=(1, 2))
    for i in np.flatnonzero(~finite).tolist():
        rows.problems.setdefault(i, RowProblem("not-finite", "NaN, infinite, or too large"))
    if rows.problems and not rows.segments.flags.writeable:
        rows.segments = rows.segments.copy()
    for i in rows.problems:
        rows.segments[i] = 0.0


def label_of(task: Task, value: object) -> list[float] | None:
    """Return a label as (label_size,) numbers, None for null; raise RowProblem for another."""
    if value is None:
        return None
    if task.classes:
        if isinstance(value, str) and value in task.classes:
            return [float(task.classes.index(value))]
        number = _number(value)
        if number is not None and number in range(len(task.classes)):
            return [number]
        raise RowProblem(BAD_LABEL, f"{value!r:.80} is not a class of the task")
    values = value if isinstance(value, list) else [value]
    numbers = [number for number in map(_number, values) if number is not None]
    if not len(values) == len(numbers) == len(task.targets):
        raise RowProblem(BAD_LABEL, f"{value!r:.80}: write {len(task.targets)} finite numbers")
    return numbers


def note_labels(task: Task, rows: Rows, values: Sequence[object]) -> None:
    """Set the labels of rows that have no problem so far."""
    rows.labels = np.full((len(rows), task.label_size), np.nan, np.float32)
    for i, value in enumerate(values):
        if i in rows.problems:
            continue
        try:
            label = label_of(task, value)
        except RowProblem as problem:
            rows.problems[i] = problem
            continue
        if label is not None:
            rows.labels[i] = label


def _number(value: object) -> float | None:
    """Return a number that float32 holds, None for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e38:
        return None
    return float(value)
