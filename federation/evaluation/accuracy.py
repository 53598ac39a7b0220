"""A model by its task's metric: on held-out people centrally, and as devices report it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import safetensors.numpy

from federation.admission import most_claimed
from federation.evaluation import paired
from federation.evaluation.paired import Paired
from federation.evaluation.promotion_gate import Comparison, Rows
from streams.contract.task import Task
from streams.contract.task.metrics import counts_rows, metric_of, top, value
from streams.contract.work import METRIC

AUDIT_BLOCK = 16  # rows of targets that stay together, as neighbours are alike
DEVICE_CAP = 2048  # no device's metrics weigh more than this many segments
LARGEST = 1e30  # a metric of a device: sums of a fleet's stay finite
AUDIT_LEAST = 80  # half of them are twice what the gate needs to decide anything


@dataclass(frozen=True)
class Score:
    """The task's metric, measured on `of` segments."""

    value: float = 0.0
    of: float = 0.0


@dataclass(frozen=True)
class HeldOut:
    """Central labelled segments: (n, channels, samples) and (n, label_size)."""

    segments: np.ndarray
    labels: np.ndarray

    def encode(self) -> bytes:
        return safetensors.numpy.save({"segments": self.segments, "labels": self.labels})

    @classmethod
    def decode(cls, data: bytes | None, task: Task) -> "HeldOut":
        """Return the segments from `encode`; none if the task has no held-out people."""
        if data is None:
            shape = (0, *task.segment_shape)
            return cls(np.zeros(shape, np.float32), np.zeros((0, task.label_size), np.float32))
        tensors = safetensors.numpy.load(data)
        return cls(tensors["segments"], tensors["labels"])

    def audited(self, task: Task, least: int = AUDIT_LEAST) -> tuple["HeldOut", "HeldOut"]:
        """Return the part that the gate decides by and the part that decides nothing, which is
        empty where there are fewer than `least` rows: the gate needs them all.

        Every second spell of each class is of the latter, so that both have all classes and
        neighbours are in the same part; for targets every second block of rows.
        """
        audit = np.zeros(len(self.labels), np.bool_)
        if len(audit) < least:
            pass
        elif task.classes:
            spell = spells(task, self.labels)
            for name in np.unique(self.labels[:, 0]):
                of = self.labels[:, 0] == name
                audit[of] = np.unique(spell[of], return_inverse=True)[1] % 2 == 1
        else:
            audit = np.arange(len(self.labels)) // AUDIT_BLOCK % 2 == 1
        return self._rows(~audit), self._rows(audit)

    def _rows(self, rows: np.ndarray) -> "HeldOut":
        return HeldOut(self.segments[rows], self.labels[rows])


def score(task: Task, outputs: np.ndarray, labels: np.ndarray) -> Score:
    """Return the task's metric of outputs (n, outputs) for labels (n, label_size); of none where it
    is not defined for these labels."""
    found = value(task, metric_of(task), outputs, labels)
    return Score(found, float(len(labels))) if np.isfinite(found) else Score()


def reported(task: Task, metrics: Mapping[str, float]) -> Score | None:
    """Return the task's metric as a device reports it, which counts DEVICE_CAP segments at most;
    None if it is missing or impossible."""
    correct, evaluated = metrics.get("correct", 0.0), metrics.get("evaluated", 0.0)
    if not (np.isfinite([correct, evaluated]).all() and 0 <= correct <= evaluated and evaluated):
        return None
    found = correct / evaluated if counts_rows(task) else metrics.get(METRIC, math.nan)
    return Score(found, min(evaluated, DEVICE_CAP)) if abs(found) <= LARGEST else None


def total(parts: Sequence[Score]) -> Score:
    """Return the mean over devices, weighted by segments, of which no device counts with many more
    than the others (`most_claimed`)."""
    if not parts:
        return Score()
    of = np.array([part.of for part in parts])
    of = np.minimum(of, most_claimed(of))
    return Score(paired.mean(of, np.array([part.value for part in parts])), float(of.sum()))


def compare(
    task: Task,
    outputs: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    clusters: np.ndarray,
    groups: Mapping[str, np.ndarray] | None = None,
) -> Comparison:
    """Compare the outputs of the served version and the candidate, (n, outputs) each, on the same
    rows.

    labels: (n, label_size); clusters: (n,) cluster numbers, see paired.py; groups: (n,) bool
    by name.
    """
    members = {f"group {name}": rows for name, rows in (groups or {}).items()}
    cohorts: dict[str, Rows] = _by_class(task, outputs, labels, clusters)
    everything = np.ones(len(labels), np.bool_)
    if counts_rows(task):
        right = [task.correct(each, labels) for each in outputs]
        cohorts |= {name: _paired(right, clusters, rows) for name, rows in members.items()}
        return Comparison(_paired(right, clusters, everything), cohorts)
    metric = metric_of(task)

    def of(rows: np.ndarray) -> paired.Valued:
        both = outputs[0][rows], outputs[1][rows]
        return paired.compare(task, metric, both, labels[rows], clusters[rows])

    cohorts |= {name: of(rows) for name, rows in members.items()}
    return Comparison(of(everything), cohorts)


def _by_class(
    task: Task, outputs: Sequence[np.ndarray], labels: np.ndarray, clusters: np.ndarray
) -> dict[str, Rows]:
    """Return the rows of each class, right and wrong, whatever the task's metric is; of `top_k`
    none: it is of answers that name several classes."""
    if not task.classes or top(task.metric) > 1:
        return {}
    answers = [task.answers(each) for each in outputs]
    classes = labels[:, 0].astype(np.int64)
    found: dict[str, Rows] = {}
    for index, name in enumerate(task.classes):
        of = classes == index
        rows = _paired([each == classes for each in answers], clusters, of)
        false = [int((each[~of] == index).sum()) for each in answers]
        found[f"class {name}"] = replace(rows, base_false=false[0], false=false[1])
    return found


def _paired(right: Sequence[np.ndarray], clusters: np.ndarray, rows: np.ndarray) -> Paired:
    base, candidate = (each[rows] for each in right)
    gained, lost = candidate & ~base, base & ~candidate
    nets = np.bincount(clusters[rows], gained.astype(np.int64) - lost.astype(np.int64))
    down, squares = np.maximum(-nets, 0).sum(), (nets**2).sum()
    return Paired(
        len(base), int(base.sum()), int(gained.sum()), int(lost.sum()),
        down=int(down), squares=int(squares),
    )  # fmt: skip


def spells(task: Task, labels: np.ndarray) -> np.ndarray:
    """Return (n,) numbers of the runs of rows of one class; for targets of blocks of rows."""
    if not task.classes or not len(labels):
        return np.arange(len(labels)) // AUDIT_BLOCK
    return np.cumsum(np.concatenate([[0], labels[1:, 0] != labels[:-1, 0]])).astype(np.int64)
