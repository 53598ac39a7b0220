"""Metrics by name of a model's outputs against true labels. Pure; defined as scikit-learn does.

    accuracy            share of right classes
    macro_f1            mean over the classes of the harmonic mean of precision and recall
    auc                 mean over the classes of the area under the ROC curve, one class against the
                        others; ties count half
    average_precision   mean over the classes of the sum of (R_n - R_n-1) P_n
    mae, rmse           mean absolute error and root of the mean squared error, in the target's unit
    r2                  1 less the squared error in relation to the labels' variance

Classes that no row has, and those that all have, do not count. Several targets count by their mean.
"""

from collections.abc import Callable

import numpy as np

from streams.contract.task import Task

Of = Callable[[np.ndarray, np.ndarray], float]


def measured(task: Task, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return all metrics of the task's kind for outputs (n, outputs) and labels (n, label_size);
    none without rows. One that is not defined for these labels is left out."""
    if not len(labels):
        return {}
    kind = CLASSES if task.classes else TARGETS
    found = {name: of(np.asarray(outputs, np.float64), labels) for name, of in kind.items()}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float((outputs.argmax(axis=1) == labels[:, 0]).mean())


def _macro_f1(outputs: np.ndarray, labels: np.ndarray) -> float:
    answers, truth = outputs.argmax(axis=1), labels[:, 0].astype(np.int64)
    found = []
    for k in np.union1d(answers, truth):
        both = int(((answers == k) & (truth == k)).sum())
        found.append(2 * both / max(int((answers == k).sum() + (truth == k).sum()), 1))
    return float(np.mean(found))


def _over_classes(of: Callable[[np.ndarray, np.ndarray], float]) -> Of:
    """The mean over classes of `of(scores, is of the class)`."""

    def mean(outputs: np.ndarray, labels: np.ndarray) -> float:
        truth = labels[:, 0].astype(np.int64)
        parts = [(outputs[:, k], truth == k) for k in range(outputs.shape[1])]
        found = [of(scores, of_class) for scores, of_class in parts if 0 < of_class.mean() < 1]
        return float(np.mean(found)) if found else float("nan")

    return mean


def _auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Mann and Whitney's U over all pairs."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    many, few = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - many * (many + 1) / 2) / (many * few))


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # of each threshold
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def _mae(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float(np.abs(outputs - labels).mean())


def _rmse(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float(np.sqrt(np.square(outputs - labels).mean(axis=0)).mean())


def _r2(outputs: np.ndarray, labels: np.ndarray) -> float:
    errors = np.square(outputs - labels).sum(axis=0)
    around = np.square(labels - labels.mean(axis=0)).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float((1 - errors / around).mean())


CLASSES: dict[str, Of] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "auc": _over_classes(_auc),
    "average_precision": _over_classes(_average_precision),
}
TARGETS: dict[str, Of] = {"mae": _mae, "rmse": _rmse, "r2": _r2}
