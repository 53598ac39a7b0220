"""What is wrong with a task's own metric, tried on made-up answers."""

import math

import numpy as np

from streams.contract.errors import TaskError
from streams.contract.task import Metric, Task
from streams.contract.task.metrics import value
from streams.segments.findings import Finding

ROWS = 256


def metric_findings(task: Task) -> list[Finding]:
    """Return an error where the user's metric fails for made-up answers, a warning where it is not
    finite for them: it may be right that it is not defined for these."""
    if not isinstance(task.metric, Metric):
        return []
    try:
        outputs, labels = _made_up(task)
        found = value(task, task.metric, outputs, labels)
    except TaskError as exc:
        return [Finding("error", "metric", str(exc), "fix `metric` in the task file")]
    if math.isfinite(found):
        return []
    text = f"metric {task.metric.name} is {found} for {len(labels)} made-up answers"
    return [Finding("warning", "metric", text, "where it is not finite, it counts as not measured")]


def _made_up(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs (n, outputs) and labels (n, label_size): of all classes; of targets between 0
    and 1, as a metric may need positive ones."""
    rng, rows = np.random.default_rng(0), max(ROWS, 2 * len(task.classes))
    if not task.classes:
        labels = rng.uniform(0.1, 0.9, (rows, task.label_size))
        return labels + rng.uniform(-0.05, 0.05, labels.shape), labels
    classes = np.arange(rows) % task.outputs
    outputs = 2 * np.eye(task.outputs)[classes] + rng.normal(size=(rows, task.outputs))
    return outputs, classes[:, None].astype(np.float64)
