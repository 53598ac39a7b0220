"""Rows and the outputs of a model as a table: docs/architecture/batch.md, Output; and what rows
look like, for drift and accuracy, as counts that add up over shards.

Inputs and answers are counted in the cells of the artifact's frozen reference, by the stream's own
code (streams.learning.drift_reference). Only rows that have an answer are counted.

MLRun's rule (its histogram data drift application): the mean over all features of the total
variation distance, and of the Hellinger distance; the mean of the two is "detected" from 0.7 on and
"potential" from 0.5 on. A shift of a standard deviation in every feature gives 0.36.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streams.batch.progress import (
    ClassCounts,
    Counts,
    JobDrift,
    MeanOfDistances,
    Observed,
    PlannedFile,
)
from streams.batch.rows import RowProblem, Rows
from streams.batch.sources.inputs import kept_fields
from streams.batch.sources.readings import FIELDS, TIMESTAMP
from streams.batch.specification import Columns, Named, Specification
from streams.contract.documents import YEAR_1980_US
from streams.contract.task import Task
from streams.contract.task.metrics import (
    auc,
    average_precision,
    balanced_accuracy,
    largest,
    macro_f1,
    softmax,
    top,
)
from streams.learning.drift_detector import compare, hellinger, shares, total_variation
from streams.learning.drift_reference import Reference, observe

Model = Callable[[np.ndarray], np.ndarray]
SCORES, FARTHEST = 4096, 8.0  # cells of the difference of two outputs, by its inverse sinh


def observed_of(
    task: Task,
    reference: Reference | None,
    segments: np.ndarray,
    outputs: np.ndarray,
    labels: np.ndarray | None,
) -> Observed:
    """Return the counts of rows that have answers; `labels` (n, label_size) are NaN where there are
    none."""
    found = Observed()
    if labels is not None:
        known = np.isfinite(labels).all(axis=1)
        found = _labelled(task, outputs[known], labels[known])
    if reference is not None:
        cells = reference.count(observe(task, segments, outputs)).tolist()
        found = found.replace(cells=cells)
    return found


def _labelled(task: Task, outputs: np.ndarray, labels: np.ndarray) -> Observed:
    if not task.classes:
        true, errors = labels.astype(np.float64), outputs.astype(np.float64) - labels
        parts = {"error": abs(errors), "error2": errors**2, "label": true, "label2": true**2}
        return Observed(sums={name: each.sum(axis=0).tolist() for name, each in parts.items()})
    truth, right = labels[:, 0].astype(np.int64), task.correct(outputs, labels)
    answers = largest(task.decided(outputs), top(task.metric))
    labelled, correct, answered = (
        np.bincount(of, minlength=len(task.classes)).tolist()
        for of in (truth, truth[right], answers.ravel())
    )
    names = zip(task.classes, labelled, correct, answered, strict=True)
    classes = {name: ClassCounts(labelled=n, correct=c, answered=a) for name, n, c, a in names}
    if len(classes) != 2:
        return Observed(classes=classes)
    far = np.arcsinh(outputs[:, 1].astype(np.float64) - outputs[:, 0]) / FARTHEST
    cell = np.clip((far + 1) / 2 * SCORES, 0, SCORES - 1).astype(np.int64)
    others, rare = (np.bincount(cell[truth == k], minlength=SCORES).tolist() for k in range(2))
    return Observed(classes=classes, rare=rare, others=others)


def metrics_of(counts: Counts) -> dict[str, float]:
    """Return the metrics of labelled rows that follow from sums, as streams.contract.task.metrics
    defines them: of targets all; of classes those by class, unless the answers are the k largest,
    and of two, from cells of the score, those without a threshold. One that is not defined is left
    out."""
    found, metrics = counts.observed, dict[str, float]()
    by_class = [(one.labelled, one.correct, one.answered) for one in found.classes.values()]
    labelled, correct, answered = np.array(by_class, np.int64).reshape(-1, 3).T
    if answered.any() and counts.labelled == answered.sum():
        metrics["balanced_accuracy"] = balanced_accuracy(labelled, correct)
        metrics["macro_f1"] = macro_f1(labelled, correct, answered)
    if any(found.rare) and any(found.others):
        by_score = np.asarray(found.rare), np.asarray(found.others)
        metrics["auc"] = auc(*by_score)
        metrics["average_precision"] = average_precision(*by_score)
    if found.sums and counts.labelled:
        means = {name: np.asarray(each) / counts.labelled for name, each in found.sums.items()}
        around = means["label2"] - means["label"] ** 2
        metrics["mae"] = float(means["error"].mean())
        metrics["rmse"] = float(np.sqrt(means["error2"]).mean())
        if (around > 1e-9 * means["label2"]).all():  # else a label that hardly varies
            metrics["r2"] = float((1 - means["error2"] / around).mean())
    return metrics


POTENTIAL, DETECTED = 0.5, 0.7


def drift_of(reference: Reference | None, observed: Observed) -> JobDrift | None:
    """Return the drift of all rows of a job, None without a reference or rows."""
    if reference is None or len(observed.cells) != reference.cells:
        return None
    counts = np.asarray(observed.cells, np.int64)
    return JobDrift(
        inputs_and_answers=compare(reference, counts, windows=1),
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


# --- rows and outputs as a table ------------------------------------------------------------


def output_schema(task: Task, columns: Columns) -> pa.Schema:
    """Return the columns of the output, those that are carried over left out."""
    text, numbers = pa.string(), pa.list_(pa.float32())
    fields = [("id", text), ("file", text), ("row", pa.int64()), ("model", text)]
    fields.append(("outputs", numbers))
    if task.classes:
        fields += [("class", text), ("probability", pa.float32())]
    if columns.label is not None:
        fields += [("label", text if task.classes else numbers), ("correct", pa.bool_())]
    return pa.schema([*fields, ("error", text), ("reason", text)])


def output_fields(task: Task, found: Specification, file: PlannedFile | Named) -> pa.Schema:
    """Return the columns of the output, with those that come from the input."""
    own = FIELDS if found.settings.rows == "readings" else []
    kept = kept_fields(found.input_format, file, found.columns)
    named = [pa.field(name, kind) for name, kind in own]
    return pa.schema([*output_schema(task, found.columns), *named, *kept])


@dataclass(frozen=True)
class Answering:
    """Answers rows with one model version; `run` is None where that is a teacher, whose outputs the
    rows have."""

    task: Task
    model: str
    run: Model | None
    reference: Reference | None
    batch: int = 1  # segments that the model answers at once

    def answer(self, rows: Rows, file: str, schema: pa.Schema) -> tuple[pa.Table, Counts]:
        """Return the output rows of a file as `schema` has them, and what became of them."""
        right = np.ones(len(rows), bool)
        right[list(rows.problems)] = False
        good = np.flatnonzero(right)
        outputs = np.zeros((len(rows), self.task.outputs), np.float32)
        if rows.outputs is not None:
            outputs[good] = rows.outputs[good]
        elif self.run is not None:
            outputs[good] = self._outputs(self.run, _where(rows.segments, right))
        for i in good[~np.isfinite(outputs[good]).all(axis=1)].tolist():
            rows.problems[i] = RowProblem("bad-answer", "the model's outputs are not finite")
            right[i], outputs[i] = False, 0.0
        found = {**rows.kept, **self._origin(rows, file), **self._answers(outputs, right)}
        labelled = correct = 0
        if rows.labels is not None:
            known = right & np.isfinite(rows.labels).all(axis=1)
            verdict = np.zeros(len(rows), bool)
            verdict[known] = self.task.correct(outputs[known], rows.labels[known])
            labelled, correct = int(known.sum()), int(verdict.sum())
            found["label"] = self._labels(rows.labels, known)
            found["correct"] = pa.array(verdict, mask=~known)
        table = pa.table([found[name] for name in schema.names], schema=schema)
        return table, Counts(
            readings=rows.readings,
            broken=rows.broken,
            bad_labels=rows.bad_labels,
            examples=rows.examples,
            early=_early(rows),
            excluded=rows.excluded,
            succeeded=int(right.sum()),
            errors=_by_code(rows.problems),
            labelled=labelled,
            correct=correct,
            observed=observed_of(
                self.task,
                self.reference,
                _where(rows.segments, right),
                outputs[right],
                None if rows.labels is None else rows.labels[right],
            ),
        )

    def _outputs(self, run: Model, segments: np.ndarray) -> np.ndarray:
        size = self.batch
        parts = [run(segments[at : at + size]) for at in range(0, len(segments), size)]
        return np.concatenate(parts) if parts else np.zeros((0, self.task.outputs), np.float32)

    def _origin(self, rows: Rows, file: str) -> dict[str, pa.Array]:
        numbers = rows.numbers
        ids = rows.ids if rows.ids is not None else [f"{file}:{n}" for n in numbers]
        errors, reasons = np.full((2, len(rows)), None, object)
        for i, problem in rows.problems.items():
            errors[i], reasons[i] = problem.code, problem.reason
        return {
            "id": pa.array(ids, pa.string()),
            "file": pa.repeat(pa.scalar(file), len(rows)),
            "row": pa.array(numbers, pa.int64()),
            "model": pa.repeat(pa.scalar(self.model), len(rows)),
            "error": pa.array(errors, pa.string()),
            "reason": pa.array(reasons, pa.string()),
        }

    def _answers(self, outputs: np.ndarray, right: np.ndarray) -> dict[str, pa.Array]:
        found = {"outputs": _lists(outputs, right)}
        if self.task.classes:
            chosen = self.task.answers(outputs)
            names = np.array(self.task.classes, object)[chosen]
            found["class"] = pa.array(names, pa.string(), mask=~right)
            shares = softmax(outputs.astype(np.float64))[np.arange(len(outputs)), chosen]
            found["probability"] = pa.array(shares, pa.float32(), mask=~right)
        return found

    def _labels(self, labels: np.ndarray, known: np.ndarray) -> pa.Array:
        if not self.task.classes:
            return _lists(labels, known)
        names = np.array(self.task.classes, object)
        indexes = np.where(known, labels[:, 0], 0).astype(np.int64)
        return pa.array(names[indexes], pa.string(), mask=~known)


def _where(segments: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the chosen segments; all of them are not copied."""
    return segments if chosen.all() else segments[chosen]


def _lists(numbers: np.ndarray, there: np.ndarray) -> pa.Array:
    """Return (n, width) numbers as lists, null where `there` is false."""
    n, width = numbers.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * width)
    values = pa.array(numbers.astype(np.float32).ravel())
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(~there))


def _early(rows: Rows) -> int:
    """Return how many segments of readings end before 1980."""
    times = rows.kept["time"] if rows.kept.keys() >= {name for name, _ in FIELDS} else pa.array([])
    if times.type != TIMESTAMP:
        return 0
    return int((times.cast(pa.int64()).to_numpy() < YEAR_1980_US).sum())


def _by_code(problems: dict[int, RowProblem]) -> dict[str, int]:
    codes = [problem.code for problem in problems.values()]
    return {code: codes.count(code) for code in sorted(set(codes))}
