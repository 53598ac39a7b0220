"""The segments that a device can learn from, with their labels.

At most `Training.samples` segments of at most 16 MB are in memory, and saved periodically to
one file (temporary, fsync, rename). The latest RECENT are always kept, because their labels
may still come. Older ones form a class-balanced reservoir (table.py), by the class of the true
label, else of the teacher's, else of the device's answer.

A segment's label is a true one, with its source and time of arrival, or the teacher's answer.

Which event of the spool's epoch a segment is of says its seq: several events may have one time.

When the device's sensor has drifted, or has been put right (edge_client.inference.drift_watch),
what was before it decides nothing about the weights that answer: `since_us` is the event time of
that. It is trained on in rounds as before; what came later as the model reads it, `behind` the
device's input adapter.

How much a teacher's label weighs beside a true one says trust.py, from the events that have both.

The file (table.py): rows with the columns `seq`, `time`, `labelled` (us since 1970),
`segment`, `answer`, `true`, `teacher`, `split` and `source`; first the reservoir's rows, then the
latest in order. An unreadable file, or one of another task version, is ignored: the samples fill
again.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from edge_client.samples.table import (
    HELD_OUT,
    TRAIN,
    SampleTable,
    capacity_of,
    parts,
    read_rows,
    row_to_evict,
    write_stream,
)
from edge_client.samples.trust import Record, record
from streams.contract.task import Task
from streams.learning.input_adapter import InputAdapter
from streams.runtime.files import replacing

log = logging.getLogger(__name__)

RECENT = 256
# Of a true label: the replay, a person, the task, the topic `labels`.
SOURCES = ("none", "told", "user", "outcome", "external")
TOLD, USER, OUTCOME, EXTERNAL = 1, 2, 3, 4


class Choosing(NamedTuple):
    """Segments (n, channels, samples) with labels (n, label_size) and event times (n,), and the
    share of all segments whose class, by the device's answer, is among these labels."""

    segments: np.ndarray
    labels: np.ndarray
    times_us: np.ndarray
    covered: float


class Samples:
    """The store of samples; thread-safe."""

    def __init__(
        self,
        task: Task,
        path: Path,
        *,
        epoch: str = "",
        capacity: int | None = None,
        dice: random.Random | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`epoch` is that of the spool: the seqs of another one name no event any more."""
        self._task = task
        self.epoch = epoch
        self._path = path
        self._wall = wall
        self._dice = dice or random.Random()
        self._lock = threading.Lock()
        self._saving = threading.Lock()  # one writes the file at a time
        n = self._capacity = capacity or capacity_of(task)
        self._table = SampleTable(task, n)
        self._recent: deque[int] = deque()
        self._recent_limit = max(1, min(RECENT, n // 4))
        self._kept = np.empty(0, np.int64)  # the rows of the reservoir
        self._free = list(range(n - 1, -1, -1))
        self._seen = [0] * (len(task.classes) or 1)  # by class, of all that came to the reservoir
        self._row_of: dict[int, int] = {}
        self.labelled: Callable[..., None] = lambda *_: None  # called with labels that come later
        self.changed = False
        self.urgent = False  # a label came from outside: save it soon
        self.added = 0  # segments since the start
        self.labels_told = 0  # true labels ever, including those of evicted segments
        self.scores_read = self.labels_read = 0  # the next offsets to read of these topics
        self.drifting, self.since_us = "", 0  # by what the drift watch found it, and since when
        self._labels_before = self._added_before = 0  # labels told and segments until then
        self.behind: InputAdapter | None = None  # the adapter that answers
        self._load()

    def hear_of_teacher(self, shares: Sequence[float]) -> None:
        """Take the share of the teacher's answers that are right by class, of all devices; nothing
        where it is not told."""
        with self._lock:
            self._table.fleet = shares or self._table.fleet

    def add(
        self,
        seq: int,
        time_us: int,
        segment: np.ndarray,
        answer: np.ndarray,
        split: int,
        label: np.ndarray | None,
    ) -> None:
        """Store the segment of an event with the device's answer; `label` is a true label or
        None."""
        with self._lock:
            if len(self._recent) >= self._recent_limit:
                self._settle(self._recent.popleft())
            row = self._free.pop()
            self._recent.append(row)
            self._table.rows[row] = (seq, time_us, 0, segment, answer, np.nan, np.nan, split, 0)
            self._row_of[seq] = row
            if label is not None:
                self._note_label(np.array([row]), label, TOLD)
            else:
                self._table.rate(np.array([row]))
            self.added += 1
            self.changed = True

    def _settle(self, row: int) -> None:
        """Move one of the latest rows to the reservoir, or evict it; a row is free afterwards."""
        table, kind = self._table, int(self._table.kind[row])
        self._seen[kind] += 1
        rows = self._kept = np.append(self._kept, row)
        if self._free:
            return
        at = row_to_evict(
            table.kind[rows], table.worth[rows], len(rows) - 1, self._seen[kind], self._dice
        )
        gone, self._kept = int(rows[at]), np.delete(rows, at)
        if self._row_of.get(seq := int(table.seqs[gone])) == gone:
            del self._row_of[seq]
        self._free.append(gone)

    def _rows(self) -> np.ndarray:
        """Return all rows in use, the latest last."""
        return np.concatenate([self._kept, np.array(self._recent, np.int64)])

    def teach(self, seqs: np.ndarray, outputs: np.ndarray) -> int:
        """Store the teacher's outputs (n, outputs) for events of this epoch; return how many belong
        to stored segments."""
        with self._lock:
            known = 0
            for seq, row_outputs in zip(seqs.tolist(), outputs, strict=True):
                row = self._row_of.get(seq)
                if row is not None:
                    self._table.teacher[row] = row_outputs
                    self._table.rate(np.array([row]))
                    known += 1
            self.changed = self.changed or known > 0
            return known

    def label(
        self,
        first_us: int,
        last_us: int,
        label: np.ndarray,
        source: int = USER,
        seq: int | None = None,
    ) -> int:
        """Store a true label (label_size,) for the segments in first..last, or for that of the
        event `seq` alone; return their number."""
        self.labelled(first_us, last_us, label, seq)
        with self._lock:
            rows = self._rows()
            if seq is not None:
                rows = rows[rows == self._row_of.get(seq, -1)]
            times = self._table.times[rows]
            rows = rows[(times >= first_us) & (times <= last_us)]
            self._note_label(rows, label, source)
            if len(rows):
                self.changed = self.urgent = True
            return len(rows)

    def _note_label(self, rows: np.ndarray, label: np.ndarray, source: int) -> None:
        self.labels_told += int((~self._table.has_true(rows)).sum())
        self._table.true[rows] = label
        self._table.source[rows] = source
        self._table.labelled[rows] = int(self._wall() * 1e6)
        self._table.rate(rows)

    def mark_drift(self, drifting: str, since_us: int) -> None:
        """Note that the sensor has drifted, found by "inputs" or "labels", or has been put right
        (""), at the event time `since_us`."""
        with self._lock:
            self.drifting, self.since_us = drifting, since_us
            rows = np.array(self._recent, np.int64)
            rows = rows[self._table.times[rows] >= since_us]
            self._labels_before = self.labels_told - int(self._table.has_true(rows).sum())
            self._added_before = self.added - len(rows)
            self.changed = self.urgent = True

    @property
    def labels_since(self) -> int:
        """The true labels that were told since the last drift."""
        return self.labels_told - self._labels_before

    @property
    def added_since(self) -> int:
        """The segments since the last drift, or since the start."""
        return self.added - self._added_before

    def latest(self, windows: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Return the number of the last windows that have segments, at most `windows`, and event
        times (n,), segments (n, channels, samples) and answers (n, outputs) of the latest of
        them."""
        with self._lock:
            rows, table = np.array(self._recent, np.int64), self._table
            numbers = table.times[rows] // self._task.window_us
            last = sorted(set(numbers.tolist()))[-windows:]  # np.unique loads masked arrays: 1.6 MB
            rows = rows[np.isin(numbers, last)]
            return len(last), table.times[rows], table.segments[rows], table.answers[rows]

    def answered(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return event times (n,), answers (n, outputs) and true labels (n, label_size) of the
        labelled segments since the last drift."""
        with self._lock:
            rows, table = self._rows(), self._table
            rows = rows[(table.times[rows] >= self.since_us) & table.has_true(rows)]
            return table.times[rows], table.answers[rows], table.true[rows]

    def write_adapter_rows(self, file: IO[bytes]) -> None:
        """Write the rows to fit and to test an input adapter on: segment, label, fold, time."""
        with self._lock:
            rows = self._rows()
            rows = rows[self._table.times[rows] >= self.since_us]
            found = self._table.adapter_rows(rows)
        write_stream(file, [found], {})

    def counts(self) -> tuple[int, int, int]:
        """Return the numbers of segments: all, with a true label, with a teacher's label."""
        with self._lock:
            rows = self._rows()
            true, taught = self._table.has_true(rows), self._table.has_teacher(rows)
            return len(rows), int(true.sum()), int(taught.sum())

    def said(self) -> dict[str, Any]:
        """Return what the device's state says of them."""
        count, true, taught = self.counts()
        return {
            "samples": count, "true_labels": true, "teacher_labels": taught,
            "labels_told": self.labels_told, "label_sources": self.sources(),
        }  # fmt: skip

    def sources(self) -> dict[str, int]:
        """Return the number of true labels by source."""
        with self._lock:
            found = np.bincount(self._table.source[self._rows()], minlength=len(SOURCES))
            return {name: int(found[i]) for i, name in enumerate(SOURCES) if i and found[i]}

    def teacher_record(self) -> Record:
        """Return how often the teacher was right here, by the class that it answered; nothing with
        differential privacy, because it tells how many events of a class there were."""
        if self._task.training.privacy is not None:
            return {}
        with self._lock:
            both = self._table.both(self._rows())
            return record(self._task, self._table.teacher[both], self._table.true[both])

    def held_out(self, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Return segments (n, channels, samples) and labels (n, label_size) of the latest held-out
        segments with a true label, at most `limit`; none of the windows that only report."""
        with self._lock:
            table, rows = self._table, self._rows()
            rows = rows[(table.split[rows] == HELD_OUT) & table.has_true(rows)]
            rows = rows[~table.reporting(rows)]
            rows = rows[np.argsort(table.times[rows])][-limit:]
            return table.segments[rows], table.true[rows]

    def choosing(self, limit: int, made_us: int) -> "Choosing":
        """Return what a choice between two versions looks at, of which the later one was made at
        `made_us` (wall clock): the latest segments with a true label that neither can have been
        trained on, at most `limit`, each content once. Those are the held-out ones, but for those
        that only report, and the ones whose label came later; none from before a drift.
        """
        with self._lock:
            table, rows = self._table, self._rows()
            rows = rows[table.times[rows] >= self.since_us]
            chosen = table.choosing(rows, made_us)[:limit]
            labels = table.true[chosen]
            return Choosing(
                table.segments[chosen], labels, table.times[chosen], table.covered(rows, labels)
            )

    def trainable(self) -> int:
        """Return how many training rows `write_training_rows` would write now."""
        with self._lock:
            rows = self._rows()
            useful = rows[self._table.weights(rows, self._table.trust(rows, rows)) > 0]
            return int((self._table.split[useful] == TRAIN).sum())

    def write_training_rows(self, file: IO[bytes]) -> None:
        """Write the rows to train and evaluate on: segment, label, weight, held_out, true.

        Training rows have a true label (weight 1) or a teacher's (its weight, omitted if 0);
        held-out rows have a true label.
        """
        with self._lock:
            rows = self._rows()
            trusted = self._table.trust(rows, rows)
        found = (self._training_rows(rows[part], trusted[part]) for part in parts(len(rows)))
        write_stream(file, found, {})

    def _training_rows(self, rows: np.ndarray, trusted: np.ndarray) -> np.ndarray:
        with self._lock:
            return self._table.training_rows(rows, trusted, self.behind, self.since_us)

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
                    "labels_read": self.labels_read,
                    "task_version": self._task.version,
                    "epoch": self.epoch,
                    "drift": [self.drifting, self.since_us, self._labels_before],
                }
                self.changed = self.urgent = False
            with replacing(self._path, mode=0o600) as file:
                saved = (self._saved_rows(rows[part]) for part in parts(len(rows)))
                write_stream(file, saved, metadata)

    def _saved_rows(self, rows: np.ndarray) -> np.ndarray:
        with self._lock:
            return np.asarray(self._table.rows[rows])

    def _load(self) -> None:
        try:
            n, metadata = read_rows(self._path, self._table.rows)
            if metadata.get("task_version", self._task.version) != self._task.version:
                log.warning("%s: samples of another task version are not used", self._path)
                return
            seen = [int(count) for count in metadata["seen"]]
            self.labels_told = int(metadata["labels_told"])
            self.scores_read = int(metadata["scores_read"])
            self.labels_read = int(metadata["labels_read"])
            drifting, since_us, before = metadata["drift"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        self.drifting, self.since_us = str(drifting), int(since_us)
        self._labels_before = int(before)
        recent = min(self._recent_limit, n)
        self._free = list(range(self._capacity - 1, n - 1, -1))
        self._table.rate(np.arange(n))
        self._kept = np.arange(n - recent)
        self._recent = deque(range(n - recent, n))
        self._seen = seen if len(seen) == len(self._seen) else self._seen
        if metadata.get("epoch") == self.epoch:
            self._row_of = {int(self._table.seqs[row]): row for row in self._rows().tolist()}
