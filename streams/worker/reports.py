"""From rows to messages: what `scores` and `windows` carry of a commit. Pure.

The same rows give the same messages, whether they were just made or are read from the store.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict

import numpy as np
import pyarrow as pa

from streams.contract.documents import (
    ClassAgreement,
    DriftReport,
    ModelWindow,
    TargetError,
    WindowReport,
)
from streams.contract.records import SCORES_1, Headers, encode_batch, score_schema
from streams.contract.task import Task
from streams.contract.topics import SCORES, WINDOWS, topic_name
from streams.worker.drift import WindowDrift
from streams.worker.rows import DRIFT

MODELS, OTHER = 50, "other"
DIGITS = 6  # of the figures that are no counts
ROWS_PER_MESSAGE = 4000  # keeps a message of `scores` under the brokers' limit
ORDER = ("device", "window", "revision", "time", "epoch", "seq")


@dataclass(frozen=True)
class Outgoing:
    """One message to send; `partition` None leaves it to the key."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes
    headers: Headers


def publications(task: Task, rows: pa.Table) -> list[Outgoing]:
    """The messages of one commit's rows: per (device, window, revision) its scores and a report."""
    messages = []
    for part in _revisions(rows):
        report = window_report(task, part)
        partition = part.column("partition")[0].as_py()
        device = report.device.encode()
        headers: Headers = [
            ("device", device),
            ("window", str(report.window_us).encode()),
            ("revision", str(report.revision).encode()),
        ]
        step = rows_per_message(task)
        scores = part.select(score_schema().names)
        for i, begin in enumerate(range(0, part.num_rows, step)):
            value = encode_batch(scores.slice(begin, step).combine_chunks().to_batches()[0])
            extra = [("schema", SCORES_1.encode()), *headers, ("part", str(i).encode())]
            topic = topic_name(task.name, SCORES)
            messages.append(Outgoing(topic, partition, device, value, extra))
        topic = topic_name(task.name, WINDOWS)
        messages.append(Outgoing(topic, partition, device, report.encode(), headers))
    return messages


def rows_per_message(task: Task) -> int:
    """How many rows of `scores` surely fit into one message: names can be 63 bytes long."""
    return max(1, min(ROWS_PER_MESSAGE, 800_000 // (300 + 8 * task.outputs + 4 * task.label_size)))


def _revisions(rows: pa.Table) -> Iterator[pa.Table]:
    table = rows.select([*score_schema().names, DRIFT.name]).sort_by(
        [(name, "ascending") for name in ORDER]
    )
    table = table.combine_chunks()
    if not table.num_rows:
        return
    changed = np.zeros(table.num_rows - 1, bool)
    for name in ORDER[:3]:
        column = table.column(name).combine_chunks().dictionary_encode()
        codes = column.indices.to_numpy()
        changed |= codes[1:] != codes[:-1]
    edges = [0, *(np.flatnonzero(changed) + 1).tolist(), table.num_rows]
    for begin, end in pairwise(edges):
        yield table.slice(begin, end - begin)


def window_report(task: Task, rows: pa.Table) -> WindowReport:
    """The report of one window's revision from its rows."""
    first = {name: rows.column(name)[0] for name in ("device", "revision", "teacher_model")}
    start = int(rows.column("window").cast(pa.int64())[0].as_py())
    outputs = np.asarray(rows.column("outputs").to_pylist(), np.float32)
    return WindowReport(
        task=task.name,
        device=first["device"].as_py(),
        window_us=start,
        end_us=start + task.window_us,
        revision=first["revision"].as_py(),
        events=rows.num_rows,
        teacher_model=first["teacher_model"].as_py(),
        models=_by_model(task, rows),
        late=first["revision"].as_py() > 0,
        confidence=_confidence(outputs) if task.classes else None,
        drift=_drift(rows),
        **_against_teacher(task, rows, outputs),
    )


def _by_model(task: Task, rows: pa.Table) -> dict[str, ModelWindow]:
    models = _named_models(rows.column("model").to_pylist())
    compared = rows.column("agrees").is_valid().to_numpy()
    agrees = rows.column("agrees").fill_null(False).to_numpy()
    labelled = rows.column("correct").is_valid().to_numpy()
    correct = rows.column("correct").fill_null(False).to_numpy()
    teacher = _teacher_correct(task, rows, compared & labelled)
    counted = {}
    for model in sorted(set(models.tolist())):
        of = models == model
        counted[model] = ModelWindow(
            events=int(of.sum()),
            compared=int((of & compared).sum()),
            agreeing=int((of & agrees).sum()),
            labelled=int((of & labelled).sum()),
            correct=int((of & correct).sum()),
            teacher_correct=int((of & teacher).sum()),
        )
    return counted


def _confidence(outputs: np.ndarray) -> float:
    """The mean of the largest softmax of (rows, outputs)."""
    shifted = outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True)
    return round(float((1 / np.exp(shifted).sum(axis=1)).mean()), DIGITS)


class _Compared(TypedDict, total=False):
    classes: dict[str, ClassAgreement]
    errors: dict[str, TargetError]


def _against_teacher(task: Task, rows: pa.Table, outputs: np.ndarray) -> _Compared:
    """The answers by the teacher's class, or their errors by target, where the teacher scored."""
    compared = rows.column("agrees").is_valid().to_numpy()
    if not compared.any():
        return {}
    chosen = rows.filter(pa.array(compared))
    teacher = np.asarray(chosen.column("teacher").to_pylist(), np.float32)
    if task.targets:
        return {"errors": _errors(task, outputs[compared].astype(np.float64) - teacher)}
    classes, agrees = teacher.argmax(axis=1), chosen.column("agrees").to_numpy()
    events = np.bincount(classes, minlength=task.outputs).tolist()
    agreeing = np.bincount(classes[agrees], minlength=task.outputs).tolist()
    return {
        "classes": {
            name: ClassAgreement(events=n, agreeing=a)
            for name, n, a in zip(task.classes, events, agreeing, strict=True)
            if n
        }
    }


def _errors(task: Task, errors: np.ndarray) -> dict[str, TargetError]:
    """(rows, targets), the answers less the teacher's."""
    return {
        target: TargetError(
            events=len(error),
            mean=round(float(error.mean()), DIGITS),
            mean_absolute=round(float(np.abs(error).mean()), DIGITS),
            root_mean_square=round(float(np.sqrt((error**2).mean())), DIGITS),
        )
        for target, error in zip(task.targets, errors.T, strict=True)
    }


def _drift(rows: pa.Table) -> DriftReport | None:
    """What was stored with the rows when they were scored."""
    stored = rows.column(DRIFT.name).drop_null()
    if not len(stored):
        return None
    return WindowDrift.decode(stored[0].as_py().encode()).report


def _named_models(models: list[str]) -> np.ndarray:
    """The rows' model versions; those beyond the most frequent MODELS count as OTHER, so that a
    report stays small whatever a device calls its models."""
    frequent = {name for name, _ in Counter(models).most_common(MODELS)}
    return np.asarray([name if name in frequent else OTHER for name in models])


def _teacher_correct(task: Task, rows: pa.Table, where: np.ndarray) -> np.ndarray:
    """(rows,) whether the teacher's answer is the true label, False where either is missing."""
    result = np.zeros(rows.num_rows, bool)
    if where.any():
        chosen = rows.filter(pa.array(where))
        answers = np.asarray(chosen.column("teacher").to_pylist(), np.float32)
        labels = np.asarray(chosen.column("label").to_pylist(), np.float32)
        result[where] = task.correct(answers, labels)
    return result
