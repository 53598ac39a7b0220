"""What a shard's rows look like, for drift and accuracy: counts that add up over shards.

Inputs and answers are counted in the cells of the artifact's frozen reference, by the stream's own
code (streams.drift); labels in the cells of the answers. Only rows that have an answer are counted.
"""

import numpy as np

from streams.batch.records.progress import ClassCounts, Observed
from streams.contract.artifact import DRIFT, Artifact
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.task import Task
from streams.drift.reference import Observations, Reference, observe


def reference_of(artifact: Artifact) -> Reference | None:
    """Return the artifact's reference, None if it has none; raise ArtifactError for a bad one."""
    if DRIFT not in artifact.files:
        return None
    try:
        return Reference.decode(artifact.files[DRIFT])
    except MalformedRecord as exc:
        raise ArtifactError("drift", f"the reference of {artifact.model}: {exc}") from exc


class Watch:
    """Counts the rows of one task."""

    def __init__(self, task: Task, reference: Reference | None) -> None:
        self._task, self._reference = task, reference

    def observe(
        self, segments: np.ndarray, outputs: np.ndarray, labels: np.ndarray | None
    ) -> Observed:
        """Return the counts of rows that have answers; `labels` (n, label_size) are NaN where there
        are none."""
        known = np.zeros(len(outputs), bool)
        if labels is not None:
            known = np.isfinite(labels).all(axis=1)
        cells: list[int] = []
        label_cells: list[int] = []
        if self._reference is not None:
            cells = self._reference.count(observe(self._task, segments, outputs)).tolist()
            if labels is not None:
                told = _as_answers(self._task, labels[known])
                label_cells = self._reference.count(told).tolist()
        classes: dict[str, ClassCounts] = {}
        if labels is not None and self._task.classes:
            classes = self._by_class(outputs[known], labels[known])
        return Observed(cells=cells, label_cells=label_cells, classes=classes)

    def _by_class(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, ClassCounts]:
        right = self._task.correct(outputs, labels)
        answered = self._task.answers(outputs)
        found = {}
        for i, name in enumerate(self._task.classes):
            chosen = labels[:, 0] == i
            found[name] = ClassCounts(
                labelled=int(chosen.sum()),
                correct=int(right[chosen].sum()),
                answered=int((answered == i).sum()),
            )
        return found


def _as_answers(task: Task, labels: np.ndarray) -> Observations:
    """Return labels as if they were answers, which have a reference."""
    if task.classes:
        return {("predictions", "answer"): labels[:, 0].astype(np.float64)}
    return {
        (f"predictions {target}", "answer"): labels[:, i].astype(np.float64)
        for i, target in enumerate(task.targets)
    }
