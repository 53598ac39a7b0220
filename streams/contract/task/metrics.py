"""Metrics by name of a model's outputs against true labels. Pure; defined as scikit-learn does.

    accuracy            share of right classes
    balanced_accuracy   mean over the classes of the share of its rows that are found (recall)
    macro_f1            mean over the classes of the harmonic mean of precision and recall
    auc                 mean over the classes of the area under the ROC curve, one class against the
                        others; ties count half
    average_precision   mean over the classes of the sum of (R_n - R_n-1) P_n
    top_k               as top_5: share of rows whose class is among the k largest outputs
    mae, rmse           mean absolute error and root of the mean squared error, in the target's unit
    r2                  1 less the squared error in relation to the labels' variance
    within              share of answers that are within `Task.tolerance` of the label

A class is decided as `Task.answers` does; scores of a class are its softmax. Classes that no row
has, and those that all have, do not count. Several targets count by their mean. With two classes
`auc` and `average_precision` are those of the second one, which should be the rare one.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from streams.contract.errors import TaskError, UsageError, line_of, own_line
from streams.contract.task.extensions import extensions, load_extension
from streams.contract.task.parts import Metric
from streams.contract.window_metrics import ERRORS, RowMetric, WindowMetric

if TYPE_CHECKING:
    from streams.contract.task.description import Task

Of = Callable[[np.ndarray, np.ndarray], float]
TITLES = {"macro_f1": "macro F1", "auc": "AUC", "mae": "MAE", "rmse": "RMSE", "r2": "R2"}
SHARE_BELOW, BRIER_ABOVE = 0.9, 0.05
BY_CLASS = ("balanced_accuracy", "macro_f1")
TOP = re.compile(r"top_([2-9]|[1-9]\d+)")
NO_THRESHOLD = ("auc", "average_precision")  # the softmax counts, not the class that is answered


def metric_of(task: "Task") -> Metric:
    """Return `Task.metric`; by default accuracy, for targets the mean absolute error."""
    if isinstance(task.metric, Metric):
        return task.metric
    name = task.metric or DEFAULT[bool(task.classes)]
    return Metric(name, _kind(task)[name], greater_is_better=name not in ERRORS)


def installed(metric: Any) -> Any:
    """Return the Metric of a package for its name; anything else unchanged. Raises TaskError."""
    if not isinstance(metric, str) or metric in ("", *NAMES[True], *NAMES[False]):
        return metric
    if TOP.fullmatch(metric) or metric not in extensions("metrics"):
        return metric
    try:
        found = load_extension("metrics", metric)
    except UsageError as exc:
        raise TaskError(str(exc)) from exc
    if not isinstance(found, Metric) or found.name != metric:
        raise TaskError(f"metric {metric}: its package has no Metric of this name, but {found!r}")
    return found


def top(metric: str | Metric) -> int:
    """Return k of the metric `top_k`, 1 of any other: with so many of its largest outputs an answer
    is right if the label is one of them."""
    found = TOP.fullmatch(metric) if isinstance(metric, str) else None
    return int(found[1]) if found else 1


def among(outputs: np.ndarray, classes: np.ndarray, k: int) -> np.ndarray:
    """Return (n,) bool, whether a class of `classes` (n,) is one of the k largest outputs (n,
    outputs); of equal ones the first count."""
    if k == 1:
        return np.asarray(outputs.argmax(axis=1) == classes)
    return np.asarray((largest(outputs, k) == classes[:, None]).any(axis=1))


def largest(outputs: np.ndarray, k: int) -> np.ndarray:
    """Return (n, k), the classes of the k largest outputs."""
    return np.argsort(-outputs, axis=1, kind="stable")[:, :k]


def counts_rows(task: "Task") -> bool:
    """Return whether the task's metric is the share of its right answers."""
    return metric_of(task).name == "accuracy" or top(task.metric) > 1


def value(task: "Task", metric: Metric, outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the metric of outputs (n, outputs) and labels (n, label_size); NaN where it is not
    defined for these labels, or there are none. Raises TaskError where the user's own metric fails,
    or returns no number."""
    if not len(labels):
        return float("nan")
    decided = task.decided(np.asarray(outputs, np.float64))
    try:
        found = metric.of(decided, np.asarray(labels, np.float64))
        if isinstance(found, str) or np.ndim(found):
            raise TypeError(f"it returns {found!r}, not a number")
        return float(found)
    except Exception as exc:
        if metric is not task.metric:  # a built-in one
            raise
        text = f"{type(exc).__name__}: {line_of(exc)}{own_line(exc)}"
        raise TaskError(f"metric {metric.name} fails: {text}", "metric") from exc


def measured(task: "Task", outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return all metrics of the task's kind, and its own, for outputs (n, outputs) and labels (n,
    label_size); none without rows. One that is not defined for these labels is left out."""
    kinds = {name: Metric(name, of) for name, of in _kind(task).items()}
    wanted = {**kinds, metric_of(task).name: metric_of(task)}
    found = {name: value(task, metric, outputs, labels) for name, metric in wanted.items()}
    return {name: each for name, each in found.items() if np.isfinite(each)}


def named(metric: str) -> str:
    """Return a metric's name for a person: `macro F1`, `RMSE`."""
    if k := TOP.fullmatch(metric):
        return f"top-{k[1]} accuracy"
    return TITLES.get(metric, metric.replace("_", " "))


def row_metric(task: "Task") -> RowMetric:
    """Return what a device's running score is measured in, answer by answer: accuracy, or for
    targets the root of the mean squared error, unless the task has the mean absolute error or the
    share within its tolerance."""
    if task.classes:
        return "accuracy"
    name = metric_of(task).name
    return "mae" if name == "mae" else "within" if name == "within" else "rmse"


def window_metric(task: "Task") -> WindowMetric:
    """Return what windows tell of the task's metric."""
    name = metric_of(task).name
    if name in BY_CLASS:
        return "balanced_accuracy"
    return "brier" if name in NO_THRESHOLD else row_metric(task)


def window_errors(task: "Task", outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return (n,) errors of answers (n, outputs) by `window_metric`, from a teacher's outputs of
    the same shape or from labels (n, label_size); 0 where it is a share."""
    if window_metric(task) != "brier":
        return row_errors(task, outputs, reference)
    if reference.shape[1] == 1:
        truth = np.eye(task.outputs)[reference[:, 0].astype(np.int64)]
    else:
        truth = softmax(reference)
    return np.asarray(((softmax(outputs) - truth) ** 2).sum(axis=1) / 2)


def retrain_limit(task: "Task") -> float:
    """Return the value of `window_metric` that starts a run when answers are worse: by default a
    share of 0.9, a Brier distance of 0.05, or an error of half the task's tolerance, with which
    about 0.9 of normal errors are within it."""
    if window_metric(task) == "brier":
        usual = BRIER_ABOVE
    elif window_metric(task) in ERRORS:
        usual = task.tolerance / 2
    else:
        usual = SHARE_BELOW
    return usual if task.retrain is None else task.retrain


def row_errors(task: "Task", outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (n,) absolute or squared errors, by `row_metric`, means over the targets; 0 where
    answers are right or wrong."""
    if row_metric(task) not in ERRORS:
        return np.zeros(len(outputs))
    away = np.abs(np.asarray(outputs, np.float64) - labels)
    return np.asarray((away if row_metric(task) == "mae" else away**2).mean(axis=1))


def gain(metric: Metric, base: float, new: float) -> float:
    """Return by how much `new` is better than `base`, -1 to 1: the difference of two scores; of two
    errors the share of the larger one that is gone or has come."""
    if metric.greater_is_better:
        return float(np.clip(new - base, -1.0, 1.0))
    most = max(abs(base), abs(new))
    return float(np.clip((base - new) / most, -1.0, 1.0)) if most else 0.0


def _kind(task: "Task") -> dict[str, Of]:
    if not task.classes:
        return {**TARGETS, "within": _within(task.tolerance)}
    k = top(task.metric)
    return CLASSES if k == 1 else {**CLASSES, f"top_{k}": _top(k)}


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float((outputs.argmax(axis=1) == labels[:, 0]).mean())


def _top(k: int) -> Of:
    return lambda outputs, labels: float(among(outputs, labels[:, 0], k).mean())


def _by_class(of: Callable[[np.ndarray, np.ndarray, np.ndarray], float]) -> Of:
    def metric(outputs: np.ndarray, labels: np.ndarray) -> float:
        answers, truth = outputs.argmax(axis=1), labels[:, 0].astype(np.int64)
        rows = truth, truth[answers == truth], answers
        return of(*(np.bincount(each, minlength=outputs.shape[1]) for each in rows))

    return metric


def balanced_accuracy(labelled: np.ndarray, correct: np.ndarray) -> float:
    """Return the mean recall of the classes that have rows; rows and right ones are counted by
    class, (classes,) each."""
    there = labelled > 0
    return float((correct[there] / labelled[there]).mean())


def macro_f1(labelled: np.ndarray, correct: np.ndarray, answered: np.ndarray) -> float:
    """Return the mean F1 of the classes that have rows or answers, (classes,) each."""
    both = labelled + answered
    return float((2 * correct[both > 0] / both[both > 0]).mean())


def _over_classes(of: Of) -> Of:
    """The mean over classes of `of(rows of the class, other rows)` by score; of two the second
    one's."""

    def mean(outputs: np.ndarray, labels: np.ndarray) -> float:
        truth, shares = labels[:, 0].astype(np.int64), softmax(outputs)
        classes = range(outputs.shape[1] == 2, outputs.shape[1])
        parts = [_by_score(shares[:, k], truth == k) for k in classes]
        found = [of(own, others) for own, others in parts if own.any() and others.any()]
        return float(np.mean(found)) if found else float("nan")

    return mean


def _by_score(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many rows of the class, and others, have each score, the smallest first."""
    _, place = np.unique(scores, return_inverse=True)
    return np.bincount(place, positive), np.bincount(place, ~positive)


def softmax(outputs: np.ndarray) -> np.ndarray:
    """(n, outputs) -> (n, outputs) shares that sum to 1"""
    odds = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def auc(own: np.ndarray, others: np.ndarray) -> float:
    """Return Mann and Whitney's U over all pairs of rows of a class and others, which are counted
    by score, (scores,) each, the smallest first."""
    below = np.cumsum(others) - others / 2
    return float((own * below).sum() / (own.sum() * others.sum()))


def average_precision(own: np.ndarray, others: np.ndarray) -> float:
    """Return the average precision of rows of a class among others, counted as for `auc`."""
    there = own + others > 0
    hits, misses = np.cumsum(own[there][::-1]), np.cumsum(others[there][::-1])
    steps = np.diff(hits, prepend=0.0) / hits[-1]
    return float((steps * hits / (hits + misses)).sum())


def _mae(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float(np.abs(outputs - labels).mean())


def _rmse(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float(np.sqrt(np.square(outputs - labels).mean(axis=0)).mean())


def _r2(outputs: np.ndarray, labels: np.ndarray) -> float:
    errors = np.square(outputs - labels).sum(axis=0)
    around = np.square(labels - labels.mean(axis=0)).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float((1 - errors / around).mean())


def _within(tolerance: float) -> Of:
    return lambda outputs, labels: float((np.abs(outputs - labels) <= tolerance).all(axis=1).mean())


CLASSES: dict[str, Of] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _by_class(
        lambda labelled, correct, _: balanced_accuracy(labelled, correct)
    ),
    "macro_f1": _by_class(macro_f1),
    "auc": _over_classes(auc),
    "average_precision": _over_classes(average_precision),
}
TARGETS: dict[str, Of] = {"mae": _mae, "rmse": _rmse, "r2": _r2}
DEFAULT = {True: "accuracy", False: "mae"}  # of classes, of targets
NAMES = {True: (*CLASSES,), False: (*TARGETS, "within")}
