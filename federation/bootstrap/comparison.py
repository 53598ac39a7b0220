"""The first device model and the teacher beside each other, by the labels of recordings."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from federation.bootstrap.dataset import Segments, TeacherWindows, group, stack
from federation.bootstrap.first_models import WINDOWS_PER_BATCH
from federation.evaluation.accuracy import score
from streams.contract.task import Task
from streams.contract.task.metrics import gain, metric_of

Metrics = dict[str, float | None]

PARTS = {"fleet": "the fleet", "held_out": "the held-out devices"}
NOT_BETTER = (
    "the teacher is not better than the first device model on {}, but where events have no true "
    "label it starts runs and judges versions: give the lab more data, or build_teacher a larger "
    "model"
)


def compare(
    task: Task,
    answer: Callable[[np.ndarray], np.ndarray],
    teacher: nn.Module,
    people: Mapping[str, Sequence[Segments]],
) -> Metrics:
    """Return the task's metric of both models by part of the `people`: `model_<part>` and
    `teacher_<part>`, None where the part has no labels to measure it by."""
    found: Metrics = {}
    for part, devices in people.items():
        known = stack(task, devices)
        outputs = answer(known.segments) if len(known.labels) else known.labels
        found[f"model_{part}"] = _measured(task, outputs, known.labels)
        found[f"teacher_{part}"] = of_teacher(task, teacher, group(task, devices))
    return found


def warning_of(task: Task, metrics: Metrics) -> str:
    """Return that the teacher is not better on the first of PARTS that both are measured on; "" if
    it is, or nothing was measured, or it scores no events (`upload="prediction"`)."""
    if task.upload == "prediction":
        return ""
    for part, name in PARTS.items():
        model, teacher = metrics[f"model_{part}"], metrics[f"teacher_{part}"]
        if model is not None and teacher is not None:
            better = gain(metric_of(task), model, teacher) > 0
            return "" if better else NOT_BETTER.format(name)
    return ""


@torch.no_grad()
def of_teacher(task: Task, teacher: nn.Module, data: TeacherWindows) -> float | None:
    """Return the teacher's metric over the labelled segments of windows; None where these have no
    labels to measure it by."""
    outputs, labels = [], []
    for at in range(0, len(data.mask), WINDOWS_PER_BATCH):
        rows = slice(at, at + WINDOWS_PER_BATCH)
        answer = teacher(torch.from_numpy(data.windows[rows]), torch.from_numpy(data.mask[rows]))
        known = data.mask[rows] & ~np.isnan(data.labels[rows]).any(axis=2)
        outputs.append(answer.numpy()[known])
        labels.append(data.labels[rows][known])
    return _measured(task, np.concatenate(outputs), np.concatenate(labels)) if labels else None


def _measured(task: Task, outputs: np.ndarray, labels: np.ndarray) -> float | None:
    found = score(task, outputs, labels)
    return found.value if found.of else None
