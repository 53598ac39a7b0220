"""The segments that a device may learn from, with the labels that it has.

A ring of the latest segments in memory, written whole to one Arrow file now and then (temporary,
fsync, rename). A segment's label is its user's correction (a true label) or the teacher's answer,
marked as such.

Every fourth window of event time is held out: segments that lie wholly in it are never trained on,
and the device evaluates models on them. Segments that straddle a border are used for neither.

The teacher counts only as far as it has shown itself better than the device, on events whose true
label is known: with accuracies a_t and a_d its labels weigh (a_t - a_d) / (1 - a_d), between 0
and 1, and nothing while fewer than `EVIDENCE` such events are known.
"""

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa

from streams.contract.disk import write_atomic
from streams.contract.records import encode_batch
from streams.contract.task import Task

EVIDENCE = 8
TRAIN, HELD_OUT, NEITHER = 0, 1, 2


def split_of(task: Task, first_us: int, last_us: int) -> int:
    """TRAIN, HELD_OUT or NEITHER for a segment's first and last event time."""
    held = [(t // task.window_us) % 4 == 3 for t in (first_us, last_us)]
    if all(held):
        return HELD_OUT
    return NEITHER if any(held) else TRAIN


def split_period_us(task: Task) -> int:
    """A shift of event time by this much leaves every segment's split as it is."""
    return 4 * task.window_us


class Samples:
    """The ring. Methods may be called from several threads."""

    def __init__(self, task: Task, path: Path, capacity: int = 2048) -> None:
        self._task = task
        self._path = path
        self._lock = threading.Lock()
        channels, samples = task.segment_shape
        self._capacity = capacity
        self._at = 0
        self._count = 0
        self._times = np.full(capacity, -1, np.int64)
        self._segments = np.zeros((capacity, channels, samples), np.float32)
        self._answers = np.zeros((capacity, task.outputs), np.float32)
        self._split = np.zeros(capacity, np.int8)
        self._true = np.full((capacity, task.label_size), np.nan, np.float32)
        self._teacher = np.full((capacity, task.outputs), np.nan, np.float32)
        self._row_of: dict[int, int] = {}
        self.changed = False
        self.labels_told = 0  # true labels ever, also those that have left the ring
        self.scores_read = 0  # offset behind the last message of `scores` that was seen
        self._load()

    def add(
        self,
        time_us: int,
        segment: np.ndarray,
        answer: np.ndarray,
        split: int,
        label: np.ndarray | None,
    ) -> None:
        """Remember a segment and what the device answered; `label` is a true label or None."""
        with self._lock:
            row = self._at
            self._row_of.pop(int(self._times[row]), None)
            self._at = (row + 1) % self._capacity
            self._count = min(self._count + 1, self._capacity)
            self._times[row] = time_us
            self._segments[row] = segment
            self._answers[row] = answer
            self._split[row] = split
            self._true[row] = np.nan if label is None else label
            self._teacher[row] = np.nan
            self.labels_told += label is not None
            self._row_of[time_us] = row
            self.changed = True

    def teach(self, times_us: np.ndarray, outputs: np.ndarray) -> int:
        """Note the teacher's outputs (n, outputs); return how many belonged to known segments."""
        with self._lock:
            known = 0
            for time_us, row_outputs in zip(times_us.tolist(), outputs, strict=True):
                row = self._row_of.get(time_us)
                if row is not None:
                    self._teacher[row] = row_outputs
                    known += 1
            self.changed = self.changed or known > 0
            return known

    def label(self, first_us: int, last_us: int, label: np.ndarray) -> int:
        """Note a true label (label_size,) for the segments whose time lies in first..last; return
        how many are still remembered."""
        with self._lock:
            times = self._times[: self._count]
            rows = np.flatnonzero((times >= first_us) & (times <= last_us))
            self.labels_told += int((~_known(self._true[rows])).sum())
            self._true[rows] = label
            self.changed = self.changed or len(rows) > 0
            return len(rows)

    def counts(self) -> tuple[int, int, int]:
        """How many segments there are, with a true label, with a teacher's label."""
        with self._lock:
            n = self._count
            return n, int(_known(self._true[:n]).sum()), int(_known(self._teacher[:n]).sum())

    def trust(self) -> float:
        """How much a teacher's label weighs beside a true one, 0 to 1."""
        with self._lock:
            return self._trust()

    def _trust(self) -> float:
        n = self._count
        both = np.logical_and(_known(self._true[:n]), _known(self._teacher[:n]))
        if int(both.sum()) < EVIDENCE:
            return 0.0
        true = self._true[:n][both]
        teacher = float(self._task.correct(self._teacher[:n][both], true).mean())
        device = float(self._task.correct(self._answers[:n][both], true).mean())
        return float(np.clip((teacher - device) / max(1.0 - device, 1e-6), 0.0, 1.0))

    def training_table(self) -> pa.RecordBatch:
        """The rows to learn from and to evaluate on: segment, label, weight, held_out, source.

        Training rows have a true label (weight 1) or a teacher's (weight `trust()`, left out at
        0); held-out rows have a true label.
        """
        with self._lock:
            n, trust = self._count, self._trust()
            true, taught = _known(self._true[:n]), _known(self._teacher[:n])
            weight = np.where(true, 1.0, np.where(taught, trust, 0.0)).astype(np.float32)
            labels = np.where(
                true[:, None],
                self._true[:n],
                self._task.labels_from(np.nan_to_num(self._teacher[:n])),
            ).astype(np.float32)
            split = self._split[:n]
            rows: np.ndarray = ((split == TRAIN) & (weight > 0)) | ((split == HELD_OUT) & true)
            order = np.flatnonzero(rows)
            return _table(
                self._segments[order], labels[order], weight[order], split[order], true[order]
            )

    def save(self) -> None:
        """Write the ring down; called by a slow thread, not by the device's loop."""
        with self._lock:
            n = self._count
            columns = {
                "time": self._times[:n],
                "split": self._split[:n],
                **{
                    name: _list(array[:n])
                    for name, array in (
                        ("segment", self._segments),
                        ("answer", self._answers),
                        ("true", self._true),
                        ("teacher", self._teacher),
                    )
                },
            }
            batch = pa.RecordBatch.from_pydict(columns, metadata=self._metadata())
            self.changed = False
        write_atomic(self._path, encode_batch(batch), mode=0o600)

    def _metadata(self) -> dict[str, str]:
        names = {"at": self._at, "labels_told": self.labels_told, "scores_read": self.scores_read}
        return {name: str(value) for name, value in names.items()}

    def _load(self) -> None:
        try:
            with pa.ipc.open_stream(self._path) as reader:
                batch = reader.read_next_batch()
            n = min(batch.num_rows, self._capacity)
            self._times[:n] = batch.column("time").to_numpy()[:n]
            self._split[:n] = batch.column("split").to_numpy()[:n]
            for name, array in (
                ("segment", self._segments),
                ("answer", self._answers),
                ("true", self._true),
                ("teacher", self._teacher),
            ):
                flat = batch.column(name).flatten().to_numpy(zero_copy_only=False)
                array[:n] = flat.reshape(batch.num_rows, *array.shape[1:])[:n]
        except (FileNotFoundError, pa.ArrowException, StopIteration, ValueError, KeyError, OSError):
            return  # samples are a cache of what the device saw: it fills again
        self._count = n
        known = {
            k.decode(): int(v) for k, v in (batch.schema.metadata or {}).items() if v.isdigit()
        }
        self._at = known.get("at", n) % self._capacity if n == self._capacity else n
        self.labels_told = known.get("labels_told", 0)
        self.scores_read = known.get("scores_read", 0)
        self._row_of = {int(t): i for i, t in enumerate(self._times[:n])}


def _known(values: np.ndarray) -> np.ndarray:
    """(n, width) -> (n,) bool: rows that hold a label, not NaN."""
    return np.asarray(np.logical_not(np.isnan(values).any(axis=1)))


def _list(array: np.ndarray) -> pa.Array:
    width = int(np.prod(array.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), width)


def _table(
    segments: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray,
    split: np.ndarray,
    true: np.ndarray,
) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "segment": _list(segments),
            "label": _list(labels),
            "weight": pa.array(weight),
            "held_out": pa.array(split == HELD_OUT),
            "true": pa.array(true),
        }
    )
