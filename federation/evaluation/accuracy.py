"""Accuracy of a model: on held-out people centrally, and as devices report it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import safetensors.numpy

from federation.evaluation.device_metrics import DEVICE_CAP
from federation.evaluation.promotion_gate import Comparison, Paired
from streams.contract.task import Task

AUDIT_BLOCK = 16  # rows of targets that stay together
AUDIT_LEAST = 80  # half of them are twice what the gate needs to decide anything


@dataclass(frozen=True)
class Accuracy:
    """Counts of answers; in regression an answer is correct within the task's tolerance."""

    correct: float = 0.0
    evaluated: float = 0.0

    @property
    def share(self) -> float:
        return self.correct / self.evaluated if self.evaluated else 0.0


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


def score(task: Task, outputs: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Return the accuracy of outputs (n, outputs) for labels (n, label_size)."""
    if not len(labels):
        return Accuracy()
    return Accuracy(float(task.correct(outputs, labels).sum()), float(len(labels)))


def reported(metrics: Mapping[str, float]) -> Accuracy | None:
    """Return a device's accuracy from its metrics, capped; None if they are missing or
    impossible."""
    correct, evaluated = metrics.get("correct", 0.0), metrics.get("evaluated", 0.0)
    if not (np.isfinite([correct, evaluated]).all() and 0 <= correct <= evaluated and evaluated):
        return None
    scale = min(1.0, DEVICE_CAP / evaluated)
    return Accuracy(correct * scale, evaluated * scale)


def total(parts: list[Accuracy]) -> Accuracy:
    return Accuracy(sum(p.correct for p in parts), sum(p.evaluated for p in parts))


def compare(
    task: Task,
    outputs: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    clusters: np.ndarray,
    groups: Mapping[str, np.ndarray] | None = None,
) -> Comparison:
    """Compare the outputs of the served version and the candidate, (n, outputs) each, on the same
    rows.

    labels: (n, label_size); clusters: (n,) cluster numbers, see promotion_gate; groups: (n,) bool
    by name.
    """
    right = [task.correct(each, labels) for each in outputs]
    cohorts = {
        f"group {name}": _paired(right, clusters, rows) for name, rows in (groups or {}).items()
    }
    classes = labels[:, 0].astype(np.int64)
    for index, name in enumerate(task.classes):
        of = classes == index
        false = [int((each.argmax(axis=1)[~of] == index).sum()) for each in outputs]
        cohorts[f"class {name}"] = replace(
            _paired(right, clusters, of), base_false=false[0], false=false[1]
        )
    return Comparison(_paired(right, clusters, np.ones(len(labels), np.bool_)), cohorts)


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
    """Return (n,) numbers of the runs of rows of one class; for targets each row is its own run."""
    if not task.classes or not len(labels):
        return np.arange(len(labels))
    return np.cumsum(np.concatenate([[0], labels[1:, 0] != labels[:-1, 0]])).astype(np.int64)
