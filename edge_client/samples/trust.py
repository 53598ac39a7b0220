"""How far a device trusts the teacher's labels. Pure.

By class of the teacher's answer, over the events that have a true label as well: `a` is the share
of the teacher's answers that are right and `d` the share of the device's. A label of this class
weighs (a - d) / (1 - d), clipped to 0..1: nothing where the device knows as much by itself.

There are few such events of each class, so both shares are drawn towards what is known otherwise,
with the weight of SHRINK events (empirical Bayes; Efron and Morris 1975): `d` towards the device's
share over all classes, `a` towards the fleet's share for this class where the run has told it, else
towards the teacher's over all classes here. A class on which the teacher is wrong more often than
right, here or over the fleet, is not used at all. That limit, LEAST, is for tasks with classes
whose metric has a threshold. With fewer than EVIDENCE events no label is used. For targets there is
one class.
"""

from collections.abc import Sequence

import numpy as np

from streams.contract.task import Task
from streams.contract.task.metrics import NO_THRESHOLD, metric_of

EVIDENCE = 8
SHRINK = 2.0
LEAST = 0.5
TOLD = 64  # classes that a device reports, the most frequent ones

Record = dict[int, tuple[int, int]]  # class of the teacher's answer -> events, right ones


def kinds(task: Task, teacher: np.ndarray) -> np.ndarray:
    """Return (n,) the class that each of the teacher's outputs (n, outputs) answers; 0 for
    targets."""
    if not task.classes:
        return np.zeros(len(teacher), np.int64)
    return np.asarray(task.answers(teacher), np.int64)


def record(task: Task, teacher: np.ndarray, true: np.ndarray) -> Record:
    """Return how often the teacher is right by class, from its outputs (n, outputs) and true labels
    (n, label_size) of the same events."""
    if not len(true):
        return {}
    of, right = kinds(task, teacher), _right(task, teacher, true)
    events = np.bincount(of)
    hits = np.bincount(of, right)
    seen = sorted(np.flatnonzero(events).tolist(), key=lambda kind: (-events[kind], kind))
    return {kind: (int(events[kind]), int(hits[kind])) for kind in seen[:TOLD]}


def by_class(
    task: Task,
    teacher: np.ndarray,
    answers: np.ndarray,
    true: np.ndarray,
    fleet: Sequence[float] = (),
) -> np.ndarray:
    """Return the weight of a teacher's label by its class, (classes,), or (1,) for targets.

    teacher, answers: outputs (n, outputs) of the teacher and of the device on the same events;
    true: their labels (n, label_size); fleet: the share of the teacher's answers that are right by
    class, of all devices, empty where it is not known.
    """
    classes = len(task.classes) or 1
    if len(true) < EVIDENCE:
        return np.zeros(classes)
    of = kinds(task, teacher)
    events = np.bincount(of, minlength=classes)
    right = [_right(task, outputs, true).astype(np.float64) for outputs in (teacher, answers)]
    known = np.asarray(fleet, np.float64)
    known = known if known.shape == (classes,) else np.full(classes, right[0].mean())
    towards = known, np.full(classes, right[1].mean())
    a, d = (
        (np.bincount(of, each, minlength=classes) + SHRINK * prior) / (events + SHRINK)
        for each, prior in zip(right, towards, strict=True)
    )
    weights = np.clip((a - d) / np.maximum(1.0 - d, 1e-6), 0.0, 1.0)
    if task.classes and metric_of(task).name not in NO_THRESHOLD:
        weights[(a < LEAST) | (known < LEAST)] = 0.0
    return np.asarray(weights)


def _right(task: Task, outputs: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return (n,) bool, whether outputs (n, outputs) make the label that is true."""
    if not task.classes:
        return task.correct(outputs, true)
    return np.asarray(task.answers(outputs) == true[:, 0].astype(np.int64))
