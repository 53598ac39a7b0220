"""The reports on `windows` for a commit's rows: those of all windows are counted at once. Pure.

A report is the JSON of a `WindowReport`. It is written field by field, because a model for each of
its parts costs more than counting. Sums are taken in the order of a window's rows, so that a window
has the same report whichever others are in its commit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streams.contract.documents import encode_fields
from streams.contract.events.batches import filled_rows, float_rows, times_us
from streams.contract.task import Task
from streams.contract.task.metrics import window_errors, window_metric
from streams.contract.window_report import CONFUSED, LABELLED, OTHER, ModelWindow
from streams.worker.commit.sliding import ByModel, Counts, SlidingSums
from streams.worker.scoring.drift_watch import report_text

MODELS = 50
DIGITS = 6  # of metrics that are not counts
MODEL_FIELDS = tuple(ModelWindow.model_fields)
COUNTS = MODEL_FIELDS.index("error")  # of them, before the sums

Fields = dict[str, object]


@dataclass(frozen=True)
class Keys:
    """What names the n windows of a commit, one entry each."""

    devices: list[str]
    starts: list[int]  # microseconds
    revisions: list[int]
    partitions: list[int]

    def __len__(self) -> int:
        return len(self.devices)


@dataclass(frozen=True)
class _Rows:
    """A commit's rows as arrays; `owner` is the row's window. teacher is zero where `compared` is
    False."""

    owner: np.ndarray
    counts: np.ndarray  # (n,) rows of each window
    models: np.ndarray  # by name: the place in `names`
    names: list[str]  # sorted
    outputs: np.ndarray  # (rows, outputs)
    teacher: np.ndarray  # (rows, outputs)
    taught: np.ndarray  # whether the teacher judges the window's rows, not their labels
    compared: np.ndarray
    agrees: np.ndarray
    labelled: np.ndarray
    correct: np.ndarray
    labels: np.ndarray  # (rows, label_size)


def keys_of(rows: pa.RecordBatch, begins: np.ndarray) -> Keys:
    """Return what names the windows whose first rows are at `begins`."""
    return Keys(
        devices=rows.column("device").take(pa.array(begins)).to_pylist(),
        starts=times_us(rows.column("window"))[begins].tolist(),
        revisions=rows.column("revision").to_numpy()[begins].tolist(),
        partitions=rows.column("partition").to_numpy()[begins].tolist(),
    )


def window_reports(
    task: Task, rows: pa.RecordBatch, edges: np.ndarray, keys: Keys, drift: Sequence[bytes],
    sliding: SlidingSums,
) -> list[bytes]:  # fmt: skip
    """Return the reports of windows, of which two successive `edges` delimit the rows; drift:
    their `drift_reports`."""
    begins, counts = edges[:-1], np.diff(edges)
    teachers = rows.column("teacher_model").take(pa.array(begins)).to_pylist()
    labelled = np.add.reduceat(_valid(rows.column("correct")), begins)
    taught = np.array([bool(name) for name in teachers], bool) & (labelled < LABELLED * counts)
    found = _rows(task, rows, counts, taught)
    models, classes, truth = _by_model(task, found), _classes(task, found), _truth(task, found)
    metric, last = window_metric(task), np.maximum.reduceat(times_us(rows.column("time")), begins)
    sliding.add(keys.devices, keys.starts, keys.revisions, models)
    reports = []
    for i, (device, start, revision) in enumerate(
        zip(keys.devices, keys.starts, keys.revisions, strict=True)
    ):
        report = {
            "task": task.name,
            "device": device,
            "window_us": start,
            "end_us": task.window.end(start, int(last[i])),
            "revision": revision,
            "events": int(counts[i]),
            "teacher_model": teachers[i],
            "models": models[i],
            "sliding": sliding.of(device, start),
            "metric": metric,
            "late": revision > 0,
            "by_labels": not taught[i],
            "classes": classes[i],
            "truth": truth[i],
        }
        reports.append(b'%b,"drift":%b}' % (encode_fields(report)[:-1], drift[i]))
    return reports


def counts_by_model(task: Task, rows: pa.RecordBatch, edges: np.ndarray) -> list[ByModel]:
    """Return each window's counts by version."""
    counts = np.diff(edges)
    return _by_model(task, _rows(task, rows, counts, np.ones(len(counts), bool)))


def _rows(task: Task, rows: pa.RecordBatch, counts: np.ndarray, taught: np.ndarray) -> _Rows:
    models = rows.column("model").dictionary_encode()
    names: list[str] = models.dictionary.to_pylist()
    order = np.array(sorted(range(len(names)), key=names.__getitem__))
    places = np.empty_like(order)
    places[order] = np.arange(len(names))
    owner = np.repeat(np.arange(len(counts)), counts)
    return _Rows(
        owner=owner,
        counts=counts,
        models=places[models.indices.to_numpy()],
        names=[names[place] for place in order],
        outputs=float_rows(rows.column("outputs"), task.outputs),
        teacher=filled_rows(rows.column("teacher"), task.outputs),
        taught=taught[owner],
        compared=_valid(rows.column("agrees")),
        agrees=rows.column("agrees").fill_null(False).to_numpy(zero_copy_only=False),
        labelled=_valid(rows.column("correct")),
        correct=rows.column("correct").fill_null(False).to_numpy(zero_copy_only=False),
        labels=filled_rows(rows.column("label"), task.label_size),
    )


def _valid(column: pa.Array) -> np.ndarray:
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False))


def _by_model(task: Task, rows: _Rows) -> list[ByModel]:
    """Return each window's counts by version. Versions beyond the MODELS most frequent are counted
    as OTHER, which bounds a report's size whatever names a device sends."""
    by_teacher = window_errors(task, rows.outputs, rows.teacher)
    by_label = window_errors(task, rows.outputs, rows.labels)
    right = rows.compared & rows.labelled & task.correct(rows.teacher, rows.labels)
    kinds = len(rows.names)
    keys, group = np.unique(rows.owner * kinds + rows.models, return_inverse=True)
    columns = {
        "events": np.ones(len(group)),
        "agreeing": rows.agrees & rows.compared,
        "compared": rows.compared,
        "labelled": rows.labelled,
        "correct": rows.correct & rows.labelled,
        "teacher_correct": right,
        "error": np.where(rows.compared, by_teacher, 0.0),
        "label_error": np.where(rows.labelled, by_label, 0.0),
    }
    sums = np.stack([np.bincount(group, columns[name]) for name in MODEL_FIELDS], axis=1)
    edges = np.searchsorted(keys, np.arange(len(rows.counts) + 1) * kinds)
    wide = np.flatnonzero(np.diff(edges) > MODELS)
    counts, figures = (
        sums[:, :COUNTS].astype(np.int64).tolist(),
        np.round(sums[:, COUNTS:], DIGITS).tolist(),
    )
    made: list[dict[str, Counts]] = [{} for _ in rows.counts]
    owners, places = np.divmod(keys, kinds)
    for i, place, count, figure in zip(
        owners.tolist(), places.tolist(), counts, figures, strict=True
    ):
        made[i][rows.names[place]] = dict(zip(MODEL_FIELDS, count + figure, strict=True))
    for i in wide.tolist():
        own = slice(edges[i], edges[i + 1])
        made[i] = _most_frequent([rows.names[place] for place in places[own]], sums[own])
    return list(made)


def _most_frequent(names: list[str], sums: np.ndarray) -> dict[str, Counts]:
    """Return the MODELS most frequent versions of a window, and OTHER; sums (names, fields)."""
    order = np.argsort(-sums[:, 0], kind="stable")
    found = {names[place]: sums[place] for place in order[:MODELS].tolist()}
    found[OTHER] = found.get(OTHER, 0) + sums[order[MODELS:]].sum(axis=0)
    return {
        name: dict(zip(MODEL_FIELDS, _numbers(found[name]), strict=True)) for name in sorted(found)
    }


def _numbers(sums: np.ndarray) -> list[int | float]:
    return [*sums[:COUNTS].astype(np.int64).tolist(), *np.round(sums[COUNTS:], DIGITS).tolist()]


def _classes(task: Task, rows: _Rows) -> list[dict[str, Fields]]:
    """Return each window's agreement by the class of the reference: the teacher's answers, or the
    true labels."""
    if not task.classes:
        return [{} for _ in rows.counts]
    labels = rows.labels[:, 0].astype(np.int64)
    classes = np.where(rows.taught, task.answers(rows.teacher), labels)
    by = np.where(rows.taught, rows.compared, rows.labelled)
    right = by & np.where(rows.taught, rows.agrees, rows.correct)
    cells, size = rows.owner * task.outputs + classes, len(rows.counts) * task.outputs
    events = np.bincount(cells[by], minlength=size).reshape(-1, task.outputs).tolist()
    agreeing = np.bincount(cells[right], minlength=size).reshape(-1, task.outputs).tolist()
    return [
        {
            name: {"events": n, "agreeing": a}
            for name, n, a in zip(task.classes, *counts, strict=True)
            if n
        }
        for counts in zip(events, agreeing, strict=True)
    ]


def _truth(task: Task, rows: _Rows) -> list[dict[str, dict[str, int]]]:
    """Return each window's labelled events by true class and answer."""
    made: list[dict[str, dict[str, int]]] = [{} for _ in rows.counts]
    if not task.classes:
        return made
    known, size = rows.labelled, task.outputs
    labels = rows.labels[known, 0].astype(np.int64)
    answers = task.answers(rows.outputs[known])
    if size > CONFUSED:
        answers = np.where(rows.correct[known], labels, -1)
    names = [*task.classes, OTHER]
    keys = np.stack([rows.owner[known], labels, answers], axis=1)
    cells, counts = np.unique(keys, axis=0, return_counts=True)
    for (window, label, answer), count in zip(cells.tolist(), counts.tolist(), strict=True):
        made[window].setdefault(names[label], {})[names[answer]] = count
    return made


def drift_reports(column: pa.ChunkedArray, order: np.ndarray, edges: np.ndarray) -> list[bytes]:
    """Return, as JSON, the report that the store's column `drift` has on one row of each window;
    rows of the column in `order` are those that `edges` delimit."""
    made = [b"null"] * (len(edges) - 1)
    held = np.flatnonzero(column.is_valid().to_numpy()[order])
    owners = np.searchsorted(edges, held, side="right") - 1
    for owner, row in zip(owners[::-1].tolist(), order[held[::-1]].tolist(), strict=True):
        made[owner] = report_text(column[row].as_py())  # the texts are long: none is copied twice
    return made
