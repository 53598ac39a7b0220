"""The messages on `scores` and `windows` for a commit's rows. Pure.

The same rows give the same messages, whether they are new or read from the store.
"""

import logging
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.contract.events.batches import encode_batch, filled_rows, float_rows
from streams.contract.events.records import SCORES_1, TASK_VERSION, Headers, score_schema
from streams.contract.task import Task
from streams.contract.task.metrics import window_errors, window_metric
from streams.contract.topics import SCORES, WINDOWS, topic_name
from streams.contract.window_report import (
    ClassAgreement,
    DriftReport,
    ModelWindow,
    TargetError,
    WindowReport,
)
from streams.worker.scoring.drift_watch import WindowDrift
from streams.worker.scoring.rows import DRIFT, VERSION
from streams.worker.windows.task_versions import TaskVersions

MODELS, OTHER = 50, "other"
DIGITS = 6  # of metrics that are not counts
ROWS_PER_MESSAGE = 4000  # keeps a message of `scores` under the brokers' limit
ORDER = ("device", "window", "revision", "time", "epoch", "seq")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outgoing:
    """One message to send."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: Headers


def publications(versions: TaskVersions, rows: pa.Table) -> list[Outgoing]:
    """Return a commit's messages: scores and a report per (device, window, revision).

    Rows of a version that is neither are left out with a warning: this worker cannot say what they
    mean. They are in the store, and one of their version had published them before it was stopped,
    unless it was killed.
    """
    messages: list[Outgoing] = []
    column = rows.column(VERSION.name)
    there = column.unique().to_pylist()
    for version in there:
        same = pc.is_null(column) if version is None else pc.equal(column, version)
        task, found = versions.named(version), rows if len(there) == 1 else rows.filter(same)
        if task is None:
            log.warning(
                "%d rows of the last commit are of version %d of task %s: they are not published "
                "again", found.num_rows, version, versions.current.name,
            )  # fmt: skip
        else:
            messages += _of_version(task, found)
    return messages


def _of_version(task: Task, rows: pa.Table) -> list[Outgoing]:
    columns, messages, step = _columns(task, rows), [], rows_per_message(task)
    scores_topic, windows_topic = topic_name(task.name, SCORES), topic_name(task.name, WINDOWS)
    for begin, end in pairwise(columns.edges):
        report = _report(task, columns, begin, end)
        partition = columns.rows.column("partition")[begin].as_py()
        device = report.device.encode()
        headers: Headers = [
            ("device", device),
            ("window", str(report.window_us).encode()),
            ("revision", str(report.revision).encode()),
            (TASK_VERSION, str(task.version).encode()),
        ]
        for i, first in enumerate(range(begin, end, step)):
            value = encode_batch(columns.rows.slice(first, min(step, end - first)))
            extra = [("schema", SCORES_1.encode()), *headers, ("part", str(i).encode())]
            messages.append(Outgoing(scores_topic, partition, device, value, extra))
        messages.append(Outgoing(windows_topic, partition, device, report.encode(), headers))
    return messages


def rows_per_message(task: Task) -> int:
    """Return how many rows of `scores` fit into a message even if all names have 63 bytes."""
    return max(1, min(ROWS_PER_MESSAGE, 800_000 // (300 + 8 * task.outputs + 4 * task.label_size)))


@dataclass(frozen=True)
class _Columns:
    """A commit's rows in ORDER, with the values per row that the window reports sum.

    rows has the columns of `scores`; two successive `edges` delimit a window's revision. teacher is
    zero where `compared` is False.
    """

    rows: pa.RecordBatch
    edges: list[int]
    drift: list[str | None]
    models: np.ndarray  # codes
    names: list[str]  # by code
    outputs: np.ndarray  # (rows, outputs)
    teacher: np.ndarray  # (rows, outputs)
    compared: np.ndarray
    agrees: np.ndarray
    labelled: np.ndarray
    correct: np.ndarray
    teacher_correct: np.ndarray
    labels: np.ndarray  # (rows, label_size)
    errors: np.ndarray  # from the teacher; 0 where `compared` is False or the metric is a share
    label_errors: np.ndarray


def _columns(task: Task, rows: pa.Table) -> _Columns:
    table = rows.select([*score_schema().names, DRIFT.name])
    table = table.sort_by([(name, "ascending") for name in ORDER]).combine_chunks()
    (batch,) = table.to_batches()
    changed = np.zeros(batch.num_rows - 1, bool)
    for name in ORDER[:3]:
        codes = batch.column(name).dictionary_encode().indices.to_numpy()
        changed |= codes[1:] != codes[:-1]
    models = batch.column("model").dictionary_encode()
    compared = batch.column("agrees").is_valid().to_numpy(zero_copy_only=False)
    labelled = batch.column("correct").is_valid().to_numpy(zero_copy_only=False)
    teacher = filled_rows(batch.column("teacher"), task.outputs)
    labels = filled_rows(batch.column("label"), task.label_size)
    outputs = float_rows(batch.column("outputs"), task.outputs)
    return _Columns(
        rows=batch.select(score_schema().names),
        edges=[0, *(np.flatnonzero(changed) + 1).tolist(), batch.num_rows],
        drift=batch.column(DRIFT.name).to_pylist(),
        models=models.indices.to_numpy(),
        names=models.dictionary.to_pylist(),
        outputs=outputs,
        teacher=teacher,
        compared=compared,
        agrees=batch.column("agrees").fill_null(False).to_numpy(zero_copy_only=False),
        labelled=labelled,
        correct=batch.column("correct").fill_null(False).to_numpy(zero_copy_only=False),
        teacher_correct=compared & labelled & task.correct(teacher, labels),
        labels=labels,
        errors=np.where(compared, window_errors(task, outputs, teacher), 0.0),
        label_errors=np.where(labelled, window_errors(task, outputs, labels), 0.0),
    )


def _report(task: Task, columns: _Columns, begin: int, end: int) -> WindowReport:
    first = columns.rows.slice(begin, 1)
    start = int(first.column("window").view(pa.int64())[0].as_py())
    revision = first.column("revision")[0].as_py()
    outputs = columns.outputs[begin:end]
    return WindowReport(
        task=task.name,
        device=first.column("device")[0].as_py(),
        window_us=start,
        end_us=start + task.window_us,
        revision=revision,
        events=end - begin,
        teacher_model=first.column("teacher_model")[0].as_py(),
        models=_by_model(columns, begin, end),
        metric=window_metric(task),
        late=revision > 0,
        confidence=_confidence(outputs) if task.classes else None,
        drift=_drift(columns.drift[begin:end]),
        **_against_reference(task, columns, begin, end),
    )


def _by_model(columns: _Columns, begin: int, end: int) -> dict[str, ModelWindow]:
    """Return counts by version. Versions beyond the MODELS most frequent are counted as OTHER,
    which bounds a report's size whatever names a device sends."""
    codes = columns.models[begin:end]
    found, events = np.unique(codes, return_counts=True)
    frequent = found[np.argsort(-events, kind="stable")[:MODELS]].tolist()
    groups = [(columns.names[code], codes == code) for code in frequent]
    if len(found) > MODELS:
        groups.append((OTHER, ~np.isin(codes, frequent)))
    compared, agrees = columns.compared[begin:end], columns.agrees[begin:end]
    labelled, correct = columns.labelled[begin:end], columns.correct[begin:end]
    teacher = columns.teacher_correct[begin:end]
    errors, label_errors = columns.errors[begin:end], columns.label_errors[begin:end]
    return {
        name: ModelWindow(
            events=int(of.sum()),
            compared=int((of & compared).sum()),
            agreeing=int((of & agrees).sum()),
            labelled=int((of & labelled).sum()),
            correct=int((of & correct).sum()),
            teacher_correct=int((of & teacher).sum()),
            error=round(float(errors[of].sum()), DIGITS),
            label_error=round(float(label_errors[of].sum()), DIGITS),
        )
        for name, of in sorted(groups, key=lambda group: group[0])
    }


def _confidence(outputs: np.ndarray) -> float:
    """Return the mean of the largest softmax of (rows, outputs)."""
    shifted = outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True)
    return round(float((1 / np.exp(shifted).sum(axis=1)).mean()), DIGITS)


class _Compared(TypedDict, total=False):
    classes: dict[str, ClassAgreement]
    errors: dict[str, TargetError]


def _against_reference(task: Task, columns: _Columns, begin: int, end: int) -> _Compared:
    """Return the agreement by the reference's class, or the errors by target of scored rows."""
    by, right = columns.compared[begin:end], columns.agrees[begin:end]
    reference = columns.teacher[begin:end]
    if task.targets:
        errors = columns.outputs[begin:end][by].astype(np.float64) - reference[by]
        return {"errors": _errors(task, errors)} if len(errors) else {}
    classes = task.answers(reference)
    if not columns.rows.column("teacher_model")[begin].as_py():
        by, right = columns.labelled[begin:end], columns.correct[begin:end]
        classes = columns.labels[begin:end, 0].astype(np.int64)
    events = np.bincount(classes[by], minlength=task.outputs).tolist()
    agreeing = np.bincount(classes[by & right], minlength=task.outputs).tolist()
    return {
        "classes": {
            name: ClassAgreement(events=n, agreeing=a)
            for name, n, a in zip(task.classes, events, agreeing, strict=True)
            if n
        }
    }


def _errors(task: Task, errors: np.ndarray) -> dict[str, TargetError]:
    """Return the errors by target; errors (rows, targets) are answers minus the teacher's."""
    return {
        target: TargetError(
            events=len(error),
            mean=round(float(error.mean()), DIGITS),
            mean_absolute=round(float(np.abs(error).mean()), DIGITS),
            root_mean_square=round(float(np.sqrt((error**2).mean())), DIGITS),
        )
        for target, error in zip(task.targets, errors.T, strict=True)
    }


def _drift(stored: list[str | None]) -> DriftReport | None:
    """Return the report that was stored with one of the rows."""
    text = next((text for text in stored if text is not None), None)
    return None if text is None else WindowDrift.decode(text.encode()).report
