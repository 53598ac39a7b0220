"""The rows that a device learns from: their columns, their file, and which ones are held out.
Samples is their lock.

**File** of the samples, and of the rows of a training:

    a line of JSON   {"columns": [[name, type, [length, ...]], ...], ...}, types as numpy's, little
                     endian, and what else is said of the rows
    rows             each row's values in the order of the columns, aligned as numpy does it

In memory they are arrays of numpy with the columns as fields. They are written a few hundred rows
at a time, because a complete copy would double the memory of a device's samples.

**Split.** Every fourth window of event time is held out: segments inside it are never trained on.
Segments that cross a border are used for neither. Of the held-out windows every second one chooses
what answers on the device; the others only report, so that nothing is judged by what it was chosen
with.

**Eviction.** Which segment a new one replaces is class-balanced reservoir sampling (Chrysakis and
Moens, "Online Continual Learning from Imbalanced Data", ICML 2020): a segment of the most frequent
class is evicted; within a class every segment ever seen stays with the same probability. Segments
without a label are evicted first, those with a true label last.
"""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from edge_client.samples.trust import by_class, kinds
from streams.contract.task import Task
from streams.learning.input_adapter import InputAdapter

ROWS = 256

Fields = list[tuple[str, str, tuple[int, ...]]]  # name, type, shape


def row_type(fields: Fields) -> np.dtype[np.void]:
    return np.dtype(fields, align=True)


def rows_of(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Return columns (rows, ...) as rows."""
    fields = [(name, each.dtype.str, each.shape[1:]) for name, each in columns.items()]
    rows = np.empty(len(next(iter(columns.values()))), row_type(fields))
    for name, values in columns.items():
        rows[name] = values
    return rows


def parts(count: int) -> Iterator[slice]:
    """Yield the parts in which so many rows are written: at least one, which may be empty."""
    return (slice(at, at + ROWS) for at in range(0, max(1, count), ROWS))


def write_stream(file: IO[bytes], chunks: Iterable[np.ndarray], metadata: dict[str, Any]) -> None:
    """Write the chunks, at least one, and what is said of them."""
    for number, rows in enumerate(chunks):
        if not number:
            head = {"columns": _fields(rows.dtype), **metadata}
            file.write(json.dumps(head).encode() + b"\n")
        file.write(rows.tobytes())


def read_rows(path: Path, rows: np.ndarray) -> tuple[int, dict[str, Any]]:
    """Fill `rows` with the last ones that fit; return their number and the metadata.

    Raises ValueError or OSError if the file is invalid; then the content of `rows` is undefined.
    """
    with path.open("rb") as file:
        kind, count, metadata = _opened(file, path)
        if kind != rows.dtype:
            raise ValueError(f"{path} has other columns")
        file.seek(max(0, count - len(rows)) * kind.itemsize, 1)
        view: Any = rows.view(np.uint8)
        return file.readinto(view) // kind.itemsize, metadata


def read_all(path: Path) -> np.ndarray:
    """Return all rows, by the names of the columns; ValueError or OSError as above."""
    with path.open("rb") as file:
        kind, _, _ = _opened(file, path)
        return np.frombuffer(file.read(), kind)


def _opened(file: IO[bytes], path: Path) -> tuple[np.dtype[np.void], int, dict[str, Any]]:
    """Read the line of JSON; return the type and the number of the rows, and the metadata."""
    try:
        metadata = dict(json.loads(file.readline()))
        fields = metadata.pop("columns")
        kind = row_type([(name, of, tuple(shape)) for name, of, shape in fields])
    except (KeyError, TypeError) as exc:
        raise ValueError(f"{path} is not a file of rows: {exc}") from exc
    begin = file.tell()
    count, rest = divmod(file.seek(0, 2) - begin, kind.itemsize)
    file.seek(begin)
    if rest:
        raise ValueError(f"{path} ends within a row")
    return kind, count, metadata


def _fields(kind: np.dtype[np.void]) -> Fields:
    found = ((name, kind[name]) for name in kind.names or ())
    return [(name, each.base.str, each.shape) for name, each in found]


TRAIN, HELD_OUT, NEITHER = 0, 1, 2


def split_of(task: Task, first_us: int, last_us: int) -> int:
    """Return TRAIN, HELD_OUT or NEITHER for a segment's first and last event time."""
    held = [(t // task.window_us) % 4 == 3 for t in (first_us, last_us)]
    if all(held):
        return HELD_OUT
    return NEITHER if any(held) else TRAIN


def reports(task: Task, times_us: np.ndarray) -> np.ndarray:
    """Return (n,) bool: whether held-out segments with these last event times only report."""
    return np.asarray((times_us // task.window_us) % 8 == 7)


def split_period_us(task: Task) -> int:
    """Return the period of the split in event time: shifting by it changes no segment's split."""
    return 8 * task.window_us


UNLABELLED, TAUGHT, TRUE = 0, 1, 2

MOST_BYTES = 16_000_000  # of all segments
FOLDS = 3  # of the rows that an input adapter is fitted on; what is held out is the one after
LABELLED, ALIGNED = 256, 128  # rows of an adapter: the latest with a label, and the latest of all


def row_to_evict(
    classes: np.ndarray, worth: np.ndarray, newest: int, seen: int, dice: random.Random
) -> int:
    """Return the row to evict, possibly `newest` itself.

    classes (n,) int and worth (n,) (UNLABELLED, TAUGHT or TRUE) of all rows including the newest;
    seen: the number of segments of the newest's class ever seen, including the newest.
    """
    counts = np.bincount(classes)
    largest = int(counts.argmax())
    rows = np.flatnonzero(classes == largest)
    rows = rows[worth[rows] == worth[rows].min()]
    others = rows[rows != newest]
    if len(others) < len(rows):
        stays = dice.random() < (counts[largest] - 1) / max(1, seen)
        if not len(others) or not stays:
            return newest
    return int(others[dice.randrange(len(others))])


class SampleTable:
    """n rows, of which Samples says which are in use: segments (n, channels, samples) with the
    device's answers (n, outputs), true labels (n, label_size) and the teacher's outputs (n,
    outputs), NaN where there is none."""

    def __init__(self, task: Task, n: int) -> None:
        whole, floats = ("seq", "time", "labelled"), {
            "segment": task.segment_shape, "answer": (task.outputs,),
            "true": (task.label_size,), "teacher": (task.outputs,),
        }  # fmt: skip
        fields: Fields = [(name, "<i8", ()) for name in whole]
        fields += [(name, "<f4", shape) for name, shape in floats.items()]
        fields += [(name, "|i1", ()) for name in ("split", "source")]
        self.task, self.rows = task, np.zeros(n, row_type(fields))
        self.seqs, self.times, self.labelled = (self.rows[name] for name in whole)
        self.segments, self.answers, self.true, self.teacher = (self.rows[name] for name in floats)
        self.split, self.source = self.rows["split"], self.rows["source"]
        self.kind = np.zeros(n, np.int64)  # the class of each row, and what its label is worth to
        self.worth = np.full(n, UNLABELLED, np.int8)  # the reservoir, as of the last `rate`
        self.fleet: Sequence[float] = ()  # the teacher's right share by class, of all devices

    def has_true(self, rows: np.ndarray) -> np.ndarray:
        """Return (n,) bool: which of the rows have a true label."""
        return known(self.true[rows])

    def has_teacher(self, rows: np.ndarray) -> np.ndarray:
        """Return (n,) bool: which of the rows have the teacher's outputs."""
        return known(self.teacher[rows])

    def reporting(self, rows: np.ndarray) -> np.ndarray:
        """Return (n,) bool: which of the rows are held out and decide nothing."""
        return np.asarray((self.split[rows] == HELD_OUT) & reports(self.task, self.times[rows]))

    def adapter_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return those of the rows that fit and test an input adapter, each content once; label
        is NaN where no true one is known, fold says which of the adapters is fitted without it."""
        rows = rows[(self.split[rows] != NEITHER) & ~self.reporting(rows)]
        rows = rows[np.argsort(self.times[rows])][::-1]
        rows = rows[self._first_of_content(rows)]
        labelled = self.has_true(rows)
        used = np.zeros(len(rows), np.bool_)
        used[:ALIGNED] = True
        used[np.flatnonzero(labelled)[:LABELLED]] = True
        rows = rows[used][::-1]
        fold = np.where(
            self.split[rows] == HELD_OUT, FOLDS, self.times[rows] // self.task.window_us % 4
        )
        return rows_of({
            "segment": self.segments[rows], "label": self.true[rows],
            "fold": fold.astype(np.int8), "time": self.times[rows],
        })  # fmt: skip

    def _first_of_content(self, rows: np.ndarray) -> np.ndarray:
        """Return the places of rows whose segment no row before has: a recording that is replayed
        gives a segment again."""
        found = {self.segments[row].tobytes(): at for at, row in [*enumerate(rows.tolist())][::-1]}
        return np.array(sorted(found.values()), np.int64)

    def rate(self, rows: np.ndarray) -> None:
        """Note class and worth of rows that are new or have another label."""
        true, taught = self.has_true(rows), self.has_teacher(rows)
        self.worth[rows] = np.where(true, TRUE, np.where(taught, TAUGHT, UNLABELLED))
        if self.task.classes:  # for the balance
            kind = self.answers[rows].argmax(1)
            kind[taught] = self.teacher[rows[taught]].argmax(1)
            kind[true] = self.true[rows[true], 0]
            self.kind[rows] = kind

    def both(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows with a true label and a teacher's, but for those that only report."""
        both = rows[self.has_true(rows) & self.has_teacher(rows)]
        return np.asarray(both[~self.reporting(both)])

    def trust(self, rows: np.ndarray, of: np.ndarray) -> np.ndarray:
        """Return the weights of the teacher's labels of the rows `of`, by what all `rows` show."""
        both = self.both(rows)
        weights = by_class(
            self.task, self.teacher[both], self.answers[both], self.true[both], self.fleet
        )
        return np.asarray(weights[kinds(self.task, np.nan_to_num(self.teacher[of]))])

    def choosing(self, rows: np.ndarray, since_us: int) -> np.ndarray:
        """Return those of the rows that a choice looks at, the latest first; see
        Samples.choosing."""
        labelled = rows[self.has_true(rows) & (self.split[rows] != NEITHER)]
        labelled = labelled[np.argsort(self.times[labelled])][::-1]
        found: dict[bytes, int] = {}
        told_us: dict[bytes, int] = {}
        for row in labelled.tolist():  # a recording that is replayed gives a segment again
            content = self.segments[row].tobytes()
            found.setdefault(content, row)
            told_us[content] = min(int(self.labelled[row]), told_us.get(content, 2**62))
        latest = np.array(list(found.values()), np.int64)
        new = np.array(list(told_us.values()), np.int64) > since_us
        may = (self.split[latest] == HELD_OUT) | new
        return np.asarray(latest[may & ~self.reporting(latest)])

    def covered(self, rows: np.ndarray, labels: np.ndarray) -> float:
        """Return the share of rows whose class, by the device's answer, is among these labels."""
        return covered(self.task, self.answers[rows], labels)

    def weights(self, rows: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        """Return what each row weighs in a training; `trusted`: what a teacher's label does."""
        true, taught = self.has_true(rows), self.has_teacher(rows)
        return np.where(true, 1.0, np.where(taught, trusted, 0.0)).astype(np.float32)

    def training_rows(
        self, rows: np.ndarray, trusted: np.ndarray, behind: InputAdapter | None, since_us: int
    ) -> np.ndarray:
        """Return those of the rows to train and evaluate on, as the trainer reads them; segments
        from `since_us` on as the model reads them behind an adapter."""
        true, weight = self.has_true(rows), self.weights(rows, trusted)
        labels = np.where(
            true[:, None],
            self.true[rows],
            self.task.labels_from(np.nan_to_num(self.teacher[rows])),
        ).astype(np.float32)
        split = self.split[rows]
        used: np.ndarray = ((split == TRAIN) & (weight > 0)) | ((split == HELD_OUT) & true)
        segments = self.segments[rows[used]]
        if behind is not None:
            late = self.times[rows[used]] >= since_us
            segments[late] = behind.apply(segments[late])
        return rows_of({
            "segment": segments, "label": labels[used], "weight": weight[used],
            "held_out": split[used] == HELD_OUT, "true": true[used],
        })  # fmt: skip


def capacity_of(task: Task) -> int:
    """Return the number of segments that fit into the limits, at least 8."""
    channels, samples = task.segment_shape
    row = 4 * (channels * samples + 2 * task.outputs + task.label_size) + 26
    fit = MOST_BYTES // row
    return max(8, min(task.training.samples, fit))


def covered(task: Task, outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of answers (n, outputs) whose class is among labels (m, label_size)."""
    if not task.classes or not len(outputs):
        return 1.0
    return float(np.isin(task.answers(outputs), labels[:, 0]).mean())


def known(values: np.ndarray) -> np.ndarray:
    """Return (n,) bool: the rows of (n, width) without NaN, which have a label."""
    return np.asarray(np.logical_not(np.isnan(values).any(axis=1)))
