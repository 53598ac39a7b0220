"""The segments that a device can learn from, with their labels.

At most `Training.samples` segments of at most `samples_mb` are in memory, and saved periodically to
one Arrow file (temporary, fsync, rename). The latest RECENT are always kept, because their labels
may still come. Older ones form a class-balanced reservoir (reservoir.py), by the class of the true
label, else of the teacher's, else of the device's answer. Segments older than `samples_age_h` of
event time are removed first.

A segment's label is a true one, with its source and time of arrival, or the teacher's answer.

How much a teacher's label weighs beside a true one says trust.py, from the events that have both.

The file: batches with the columns `time`, `split`, `source`, `labelled` (us since 1970),
`segment`, `answer`, `true` and `teacher`; first the reservoir's rows, then the latest in order. An
unreadable file, or one of another task version, is ignored: the samples fill again.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from edge_client.samples.reservoir import TAUGHT, TRUE, UNLABELLED, row_to_evict
from edge_client.samples.sample_file import ROWS, Columns, read_rows, write_rows, write_stream
from edge_client.samples.splits import HELD_OUT, NEITHER, TRAIN, reports
from edge_client.samples.trust import Record, by_class, kinds, record
from streams.contract.task import Task

log = logging.getLogger(__name__)

RECENT = 256
SOURCES = ("none", "told", "user", "outcome")  # of a true label: the replay, a person, the task
TOLD, USER, OUTCOME = 1, 2, 3


class Samples:
    """The store of samples; thread-safe."""

    def __init__(
        self,
        task: Task,
        path: Path,
        *,
        capacity: int | None = None,
        dice: random.Random | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._task = task
        self._path = path
        self._wall = wall
        self._dice = dice or random.Random()
        self._lock = threading.Lock()
        self._saving = threading.Lock()  # one writes the file at a time
        n = self._capacity = capacity or _capacity(task)
        age_h = task.training.samples_age_h
        self._age_us = None if age_h is None else round(age_h * 3600e6)
        self._times = np.full(n, -1, np.int64)
        self._segments = np.zeros((n, *task.segment_shape), np.float32)
        self._answers = np.zeros((n, task.outputs), np.float32)
        self._split = np.zeros(n, np.int8)
        self._source = np.zeros(n, np.int8)
        self._labelled = np.zeros(n, np.int64)
        self._true = np.full((n, task.label_size), np.nan, np.float32)
        self._teacher = np.full((n, task.outputs), np.nan, np.float32)
        self._recent: deque[int] = deque()
        self._recent_limit = max(1, min(RECENT, n // 4))
        self._kept: list[int] = []  # rows of the reservoir
        self._free = list(range(n - 1, -1, -1))
        self._seen = [0] * (len(task.classes) or 1)  # by class, of all that came to the reservoir
        self._row_of: dict[int, int] = {}
        self.changed = False
        self.urgent = False  # a label came from outside: save it soon
        self.added = 0  # segments since the start
        self.labels_told = 0  # true labels ever, including those of evicted segments
        self.scores_read = 0  # the next offset to read of `scores`
        self.fleet: Sequence[float] = ()  # the teacher's right share by class, of all devices
        self._load()

    def add(
        self,
        time_us: int,
        segment: np.ndarray,
        answer: np.ndarray,
        split: int,
        label: np.ndarray | None,
    ) -> None:
        """Store a segment with the device's answer; `label` is a true label or None."""
        with self._lock:
            self._expire(time_us)
            if len(self._recent) >= self._recent_limit:
                self._settle(self._recent.popleft())
            row = self._free.pop()
            self._recent.append(row)
            self._times[row] = time_us
            self._segments[row] = segment
            self._answers[row] = answer
            self._split[row] = split
            self._true[row] = np.nan
            self._teacher[row] = np.nan
            self._source[row] = 0
            self._row_of[time_us] = row
            if label is not None:
                self._note_label(np.array([row]), label, TOLD)
            self.added += 1
            self.changed = True

    def _settle(self, row: int) -> None:
        """Move one of the latest rows to the reservoir, or evict it; a row is free afterwards."""
        kind = int(self._classes(np.array([row]))[0])
        self._seen[kind] += 1
        self._kept.append(row)
        if self._free:
            return
        rows = np.array(self._kept)
        at = row_to_evict(
            self._classes(rows), self._worth(rows), len(rows) - 1, self._seen[kind], self._dice
        )
        self._forget(self._kept.pop(at))

    def _expire(self, now_us: int) -> None:
        """Remove segments that are too old at `now_us`."""
        if self._age_us is None or not self._kept:
            return
        rows = np.array(self._kept)
        old = set(rows[self._times[rows] < now_us - self._age_us].tolist())
        if old:
            self._kept = [row for row in self._kept if row not in old]
            for row in old:
                self._forget(row)

    def _forget(self, row: int) -> None:
        if self._row_of.get(int(self._times[row])) == row:
            del self._row_of[int(self._times[row])]
        self._free.append(row)

    def _classes(self, rows: np.ndarray) -> np.ndarray:
        """Return the class of each row, for the balance; 0 if the task has targets."""
        if not self._task.classes:
            return np.zeros(len(rows), np.int64)
        true, taught = self._true[rows], self._teacher[rows]
        guess = np.where(
            _known(taught), np.nan_to_num(taught).argmax(1), self._answers[rows].argmax(1)
        )
        found = np.where(_known(true), np.nan_to_num(true[:, 0]), guess)
        return np.asarray(found, np.int64)

    def _worth(self, rows: np.ndarray) -> np.ndarray:
        taught = np.where(_known(self._teacher[rows]), TAUGHT, UNLABELLED)
        return np.where(_known(self._true[rows]), TRUE, taught)

    def _rows(self) -> np.ndarray:
        """Return all rows in use, the latest last."""
        return np.array([*self._kept, *self._recent], np.int64)

    def teach(self, times_us: np.ndarray, outputs: np.ndarray) -> int:
        """Store the teacher's outputs (n, outputs); return how many belong to stored segments."""
        with self._lock:
            known = 0
            for time_us, row_outputs in zip(times_us.tolist(), outputs, strict=True):
                row = self._row_of.get(time_us)
                if row is not None:
                    self._teacher[row] = row_outputs
                    known += 1
            self.changed = self.changed or known > 0
            return known

    def label(self, first_us: int, last_us: int, label: np.ndarray, source: int = USER) -> int:
        """Store a true label (label_size,) for the segments in first..last; return their number."""
        with self._lock:
            rows = self._rows()
            times = self._times[rows]
            rows = rows[(times >= first_us) & (times <= last_us)]
            self._note_label(rows, label, source)
            self.changed = self.changed or len(rows) > 0
            self.urgent = self.urgent or len(rows) > 0
            return len(rows)

    def _note_label(self, rows: np.ndarray, label: np.ndarray, source: int) -> None:
        self.labels_told += int((~_known(self._true[rows])).sum())
        self._true[rows] = label
        self._source[rows] = source
        self._labelled[rows] = int(self._wall() * 1e6)

    def counts(self) -> tuple[int, int, int]:
        """Return the numbers of segments: all, with a true label, with a teacher's label."""
        with self._lock:
            rows = self._rows()
            true, taught = _known(self._true[rows]), _known(self._teacher[rows])
            return len(rows), int(true.sum()), int(taught.sum())

    def sources(self) -> dict[str, int]:
        """Return the number of true labels by source."""
        with self._lock:
            found = np.bincount(self._source[self._rows()], minlength=len(SOURCES))
            return {name: int(found[i]) for i, name in enumerate(SOURCES) if i and found[i]}

    def trust(self) -> float:
        """Return the mean weight of a teacher's label relative to a true one, 0 to 1: of those that
        count now, else of all."""
        with self._lock:
            rows = self._rows()
            taught = rows[_known(self._teacher[rows])]
            alone = taught[~_known(self._true[taught])]
            counting = alone if len(alone) else taught
            return float(self._trust(rows, counting).mean()) if len(counting) else 0.0

    def teacher_record(self) -> Record:
        """Return how often the teacher was right here, by the class that it answered; nothing with
        differential privacy, because it tells how many events of a class there were."""
        if self._task.training.privacy is not None:
            return {}
        with self._lock:
            both = self._both(self._rows())
            return record(self._task, self._teacher[both], self._true[both])

    def _both(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows with a true label and a teacher's, but for those that only report."""
        both = rows[_known(self._true[rows]) & _known(self._teacher[rows])]
        reporting = (self._split[both] == HELD_OUT) & reports(self._task, self._times[both])
        return np.asarray(both[~reporting])

    def _trust(self, rows: np.ndarray, of: np.ndarray) -> np.ndarray:
        """Return the weights of the teacher's labels of the rows `of`, by what all `rows` show."""
        both = self._both(rows)
        weights = by_class(
            self._task, self._teacher[both], self._answers[both], self._true[both], self.fleet
        )
        return np.asarray(weights[kinds(self._task, np.nan_to_num(self._teacher[of]))])

    def held_out(self, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Return segments (n, channels, samples) and labels (n, label_size) of the latest held-out
        segments with a true label, at most `limit`; none of the windows that only report."""
        with self._lock:
            rows = self._rows()
            rows = rows[(self._split[rows] == HELD_OUT) & _known(self._true[rows])]
            rows = rows[~reports(self._task, self._times[rows])]
            rows = rows[np.argsort(self._times[rows])][-limit:]
            return self._segments[rows], self._true[rows]

    def choosing(self, limit: int, since_us: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Return what a choice between two versions looks at, of which the later one was made at
        `since_us` (wall clock): the latest segments (n, channels, samples) with a true label
        (n, label_size) that neither can have been trained on, at most `limit`, each content once;
        and the share of all segments whose class, by the device's answer, is among their labels.

        Those are the held-out ones, but for those that only report, and the ones whose label came
        later.
        """
        with self._lock:
            rows = self._rows()
            known = rows[_known(self._true[rows]) & (self._split[rows] != NEITHER)]
            known = known[np.argsort(self._times[known])][::-1]
            found: dict[bytes, int] = {}
            told_us: dict[bytes, int] = {}
            for row in known.tolist():  # a recording that is replayed gives a segment again
                content = self._segments[row].tobytes()
                found.setdefault(content, row)
                told_us[content] = min(int(self._labelled[row]), told_us.get(content, 2**62))
            latest = np.array(list(found.values()), np.int64)
            held = self._split[latest] == HELD_OUT
            reporting = held & reports(self._task, self._times[latest])
            new = np.array(list(told_us.values()), np.int64) > since_us
            chosen = latest[(held | new) & ~reporting][:limit]
            labels = self._true[chosen]
            return self._segments[chosen], labels, self._covered(rows, labels)

    def covered(self, labels: np.ndarray) -> float:
        """Return the share of all segments whose class, by the device's answer, is among these
        labels (n, label_size)."""
        with self._lock:
            return self._covered(self._rows(), labels)

    def _covered(self, rows: np.ndarray, labels: np.ndarray) -> float:
        if not self._task.classes or not len(rows):
            return 1.0
        answered = self._task.answers(self._answers[rows])
        return float(np.isin(answered, labels[:, 0]).mean())

    def latest(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the latest segments (n, channels, samples) as they came, their true labels (n,
        label_size), and (n,) bool: which of these are known and may choose."""
        with self._lock:
            rows = np.array(self._recent, np.int64)
            reporting = (self._split[rows] == HELD_OUT) & reports(self._task, self._times[rows])
            return self._segments[rows], self._true[rows], _known(self._true[rows]) & ~reporting

    def write_latest_rows(self, file: IO[bytes]) -> None:
        """Write the latest segments as training rows; those whose label is known and may choose
        weigh 1, the others 0."""
        segments, labels, known = self.latest()
        columns = {
            "segment": segments,
            "label": np.nan_to_num(labels),
            "weight": known.astype(np.float32),
            "held_out": np.zeros(len(known), np.bool_),
            "true": known,
        }
        write_stream(file, [columns], {})

    def trainable(self) -> int:
        """Return how many training rows `write_training_rows` would write now."""
        with self._lock:
            rows = self._rows()
            useful = rows[self._weights(rows, self._trust(rows, rows)) > 0]
            return int((self._split[useful] == TRAIN).sum())

    def _weights(self, rows: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        true, taught = _known(self._true[rows]), _known(self._teacher[rows])
        return np.where(true, 1.0, np.where(taught, trusted, 0.0)).astype(np.float32)

    def write_training_rows(self, file: IO[bytes]) -> None:
        """Write the rows to train and evaluate on: segment, label, weight, held_out, true.

        Training rows have a true label (weight 1) or a teacher's (its weight, omitted if 0);
        held-out rows have a true label.
        """
        with self._lock:
            rows = self._rows()
            trusted = self._trust(rows, rows)
        at = range(0, max(1, len(rows)), ROWS)
        parts = ((rows[i : i + ROWS], trusted[i : i + ROWS]) for i in at)
        write_stream(file, (self._training_rows(*part) for part in parts), {})

    def _training_rows(self, rows: np.ndarray, trusted: np.ndarray) -> Columns:
        with self._lock:
            true, weight = _known(self._true[rows]), self._weights(rows, trusted)
            labels = np.where(
                true[:, None],
                self._true[rows],
                self._task.labels_from(np.nan_to_num(self._teacher[rows])),
            ).astype(np.float32)
            split = self._split[rows]
            used: np.ndarray = ((split == TRAIN) & (weight > 0)) | ((split == HELD_OUT) & true)
            return {
                "segment": self._segments[rows[used]],
                "label": labels[used],
                "weight": weight[used],
                "held_out": split[used] == HELD_OUT,
                "true": true[used],
            }

    def save(self) -> None:
        """Save all samples; not for the device's loop, because it is slow.

        Rows that change meanwhile are saved in their old or new state.
        """
        with self._saving:
            with self._lock:
                rows = self._rows()
                metadata = {
                    "seen": self._seen,
                    "labels_told": self.labels_told,
                    "scores_read": self.scores_read,
                    "task_version": self._task.version,
                }
                self.changed = self.urgent = False
            write_rows(self._path, (self._saved_rows(part) for part in _parts(rows)), metadata)

    def _saved_rows(self, rows: np.ndarray) -> Columns:
        with self._lock:
            return {name: array[rows] for name, array in self._columns().items()}

    def _columns(self) -> Columns:
        return {
            "time": self._times,
            "split": self._split,
            "source": self._source,
            "labelled": self._labelled,
            "segment": self._segments,
            "answer": self._answers,
            "true": self._true,
            "teacher": self._teacher,
        }

    def _load(self) -> None:
        try:
            n, metadata = read_rows(self._path, self._columns())
            if metadata.get("task_version", self._task.version) != self._task.version:
                log.warning("%s: samples of another task version are not used", self._path)
                return
            seen = [int(count) for count in metadata["seen"]]
            self.labels_told = int(metadata["labels_told"])
            self.scores_read = int(metadata["scores_read"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        recent = min(self._recent_limit, n)
        self._free = list(range(self._capacity - 1, n - 1, -1))
        self._kept = list(range(n - recent))
        self._recent = deque(range(n - recent, n))
        self._seen = seen if len(seen) == len(self._seen) else self._seen
        self._row_of = {int(self._times[row]): row for row in self._rows().tolist()}


def _capacity(task: Task) -> int:
    """Return the number of segments that fit into the limits, at least 8."""
    channels, samples = task.segment_shape
    row = 4 * (channels * samples + 2 * task.outputs + task.label_size) + 18
    fit = int(task.training.samples_mb * 1e6) // row
    return max(8, min(task.training.samples, fit))


def _known(values: np.ndarray) -> np.ndarray:
    """Return (n,) bool: the rows of (n, width) without NaN, which have a label."""
    return np.asarray(np.logical_not(np.isnan(values).any(axis=1)))


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    """Split into parts of ROWS rows; returns at least one part, which may be empty."""
    return [rows[at : at + ROWS] for at in range(0, max(1, len(rows)), ROWS)]
