"""What rows look like, for drift and accuracy, as counts that add up over shards; and the drift of
a whole job: the stream's verdict, and that of MLRun beside it.

Inputs and answers are counted in the cells of the artifact's frozen reference, by the stream's own
code (streams.drift); labels in the cells of the answers. Only rows that have an answer are counted.

MLRun's rule (its histogram data drift application): the mean over all features of the total
variation distance, and of the Hellinger distance; the mean of the two is "detected" from 0.7 on and
"potential" from 0.5 on. A mean over features hides one that has moved far, and a shift of a
standard deviation in every feature gives 0.36.
"""

import numpy as np

from streams.batch.records.progress import ClassCounts, JobDrift, MeanOfDistances, Observed
from streams.contract.artifact import DRIFT, Artifact
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.task import Task
from streams.contract.window_report import ChannelDrift
from streams.drift.detector import compare
from streams.drift.distances import hellinger, shares, total_variation
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


POTENTIAL, DETECTED = 0.5, 0.7


def drift_of(reference: Reference | None, observed: Observed) -> JobDrift | None:
    """Return the drift of all rows of a job, None without a reference or rows."""
    if reference is None or len(observed.cells) != reference.cells:
        return None
    counts = np.asarray(observed.cells, np.int64)
    labels: list[ChannelDrift] = []
    if len(observed.label_cells) == reference.cells:
        told = np.asarray(observed.label_cells, np.int64)
        labels = compare(reference, told, windows=1).channels if told.any() else []
    return JobDrift(
        inputs_and_answers=compare(reference, counts, windows=1),
        labels=labels,
        mean_of_distances=mean_of_distances(reference, counts),
    )


def mean_of_distances(reference: Reference, counts: np.ndarray) -> MeanOfDistances:
    """Return MLRun's verdict over all features that have values."""
    found = []
    for feature, own in zip(reference.features, reference.split(counts), strict=True):
        if own.any():
            p, q = shares(np.asarray(feature.counts)), shares(own)
            found.append((float(total_variation(p, q)), float(hellinger(p, q))))
    mean = float(np.mean(found)) if found else 0.0
    value = round(mean, 6)
    if mean >= DETECTED:
        return MeanOfDistances(value=value, status="detected")
    return MeanOfDistances(value=value, status="potential" if mean >= POTENTIAL else "none")
