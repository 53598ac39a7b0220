"""The reports on `windows` for a commit's rows, or for labels that came later: those of all windows
are counted at once. Pure.

A report is the JSON of a `WindowReport`. It is written field by field, because a model for each of
its parts costs more than counting. Sums are taken in the order of a window's rows, so that a window
has the same report whichever others are in its commit.

Of a task with `Sliding` windows a report has the sums of its device's last windows too. They are a
function of the stored rows, so that a commit that is published again has them again: of each device
the counts of its windows are kept for twice the length, by revision, and an assignment reads them
from the store. A report that comes later than `length_s` after the device's newest window has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from streams.contract.documents import encoded
from streams.contract.events.batches import filled_rows, float_rows, times_us
from streams.contract.task import Sliding, Task
from streams.contract.task.metrics import window_errors, window_metric
from streams.contract.window_report import CONFUSED, NUMBERS, OTHER
from streams.worker.windows.drift_watch import report_text

ByModel = Mapping[str, Mapping[str, Any]]  # the fields of a ModelWindow


@dataclass
class SlidingSums:
    """The counts of the last windows of the devices whose partitions are owned."""

    task: Task
    _windows: dict[str, dict[tuple[int, int], ByModel]] = field(default_factory=dict)

    @property
    def length_us(self) -> int:
        """What a report covers; 0 where windows do not slide."""
        window = self.task.window
        return round(window.length_s * 1e6) if isinstance(window, Sliding) else 0

    @property
    def kept_us(self) -> int:
        return 2 * self.length_us

    def add(
        self, devices: Sequence[str], starts: Sequence[int], revisions: Sequence[int],
        models: Sequence[ByModel],
    ) -> None:  # fmt: skip
        """Add the counts of windows' revisions; one that is there already is not added again."""
        if not self.length_us:
            return
        for device, start, revision, found in zip(devices, starts, revisions, models, strict=True):
            own = self._windows.setdefault(device, {})
            own[start, revision] = found
            oldest = max(own)[0] - self.kept_us
            for old in [key for key in own if key[0] <= oldest]:
                del own[old]

    def of(self, device: str, start: int) -> dict[str, dict[str, Any]]:
        """Return the sums by version of the windows up to the one that starts at `start`."""
        own = self._windows.get(device, {})
        if not own or start <= max(own)[0] - self.length_us:
            return {}
        sums: dict[str, dict[str, Any]] = {}
        for (window, _), models in sorted(own.items(), key=lambda item: item[0]):
            if start - self.length_us < window <= start:
                for model, counts in models.items():
                    total = sums.setdefault(model, dict.fromkeys(NUMBERS, 0))
                    for name in NUMBERS:
                        total[name] += counts[name]
        return sums

    def forget(self) -> None:
        self._windows.clear()


MODELS = 50
DIGITS = 6  # of metrics that are not counts
COUNTS = NUMBERS.index("error")  # of them, before the sums

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
    False. told: what the row's label counts, 0 without one, -1 where it is taken away; events:
    whether the rows count otherwise."""

    owner: np.ndarray
    windows: int
    models: np.ndarray  # by name: the place in `names`
    names: list[str]  # sorted, but for OTHER
    outputs: np.ndarray  # (rows, outputs)
    teacher: np.ndarray  # (rows, outputs)
    compared: np.ndarray
    agrees: np.ndarray
    told: np.ndarray
    correct: np.ndarray
    labels: np.ndarray  # (rows, label_size)
    events: bool


def keys_of(rows: pa.RecordBatch, begins: np.ndarray) -> Keys:
    """Return what names the windows whose first rows are at `begins`."""
    return Keys(
        devices=rows.column("device").take(pa.array(begins)).to_pylist(),
        starts=times_us(rows.column("window"))[begins].tolist(),
        revisions=rows.column("revision").to_numpy()[begins].tolist(),
        partitions=rows.column("partition").to_numpy()[begins].tolist(),
    )


def window_reports(
    task: Task,
    rows: pa.RecordBatch,
    edges: np.ndarray,
    keys: Keys,
    store: str,
    drift: Sequence[bytes] | None = None,
    told: np.ndarray | None = None,
    sliding: SlidingSums | None = None,
) -> list[bytes]:
    """Return the reports of windows, of which two successive `edges` delimit the rows; drift:
    their `drift_reports`. store: where the rows are. With `told` (rows,), 1 or -1, they are events
    whose label came later, or is replaced by then, and nothing else of them counts."""
    begins, counts = edges[:-1], np.diff(edges)
    teachers = rows.column("teacher_model").take(pa.array(begins)).to_pylist()
    commits = rows.column("commit").to_numpy()[begins].tolist()
    models = _by_model(task, _rows(task, rows, counts, told))
    metric, last = window_metric(task), np.maximum.reduceat(times_us(rows.column("time")), begins)
    if sliding is not None:
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
            "events": int(counts[i]) if told is None else 0,
            "teacher_model": teachers[i],
            "models": models[i],
            "sliding": {} if sliding is None else sliding.of(device, start),
            "metric": metric,
            "late": revision > 0 and told is None,
            "store": store,
            "partition": keys.partitions[i],
            "commit": commits[i],
        }
        drifted = b"null" if drift is None else drift[i]
        reports.append(b'%b,"drift":%b}' % (encoded(report)[:-1], drifted))
    return reports


def counts_by_model(task: Task, rows: pa.RecordBatch, edges: np.ndarray) -> list[dict[str, Fields]]:
    """Return each window's counts by version."""
    return _by_model(task, _rows(task, rows, np.diff(edges), None))


def _rows(task: Task, rows: pa.RecordBatch, counts: np.ndarray, told: np.ndarray | None) -> _Rows:
    models = rows.column("model").dictionary_encode()
    names: list[str] = models.dictionary.to_pylist()
    order = np.array(sorted(range(len(names)), key=names.__getitem__))
    places = np.empty_like(order)
    places[order] = np.arange(len(names))
    owner = np.repeat(np.arange(len(counts)), counts)
    known = _valid(rows.column("correct"))
    return _Rows(
        owner=owner,
        windows=len(counts),
        **_most_frequent(owner, places[models.indices.to_numpy()], [names[i] for i in order]),
        outputs=float_rows(rows.column("outputs"), task.outputs),
        teacher=filled_rows(rows.column("teacher"), task.outputs),
        compared=_valid(rows.column("agrees")),
        agrees=rows.column("agrees").fill_null(False).to_numpy(zero_copy_only=False),
        told=known.astype(np.int64) if told is None else told,
        correct=rows.column("correct").fill_null(False).to_numpy(zero_copy_only=False),
        labels=filled_rows(rows.column("label"), task.label_size),
        events=told is None,
    )


def _valid(column: pa.Array) -> np.ndarray:
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False))


def _most_frequent(owner: np.ndarray, models: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Return the rows' models, and the names. Versions of a window beyond its MODELS most frequent
    ones are OTHER, which bounds a report's size whatever names a device sends."""
    kinds = len(names)
    keys, group, counts = np.unique(owner * kinds + models, return_inverse=True, return_counts=True)
    _, first, each = np.unique(keys // kinds, return_index=True, return_counts=True)
    if each.max() <= MODELS:
        return {"models": models, "names": names}
    other = names.index(OTHER) if OTHER in names else kinds
    found = keys % kinds
    for begin, size in zip(first.tolist(), each.tolist(), strict=True):
        rare = np.argsort(-counts[begin : begin + size], kind="stable")[MODELS:]
        found[begin + rare] = other
    return {"models": found[group], "names": names if other < kinds else [*names, OTHER]}


def _by_model(task: Task, rows: _Rows) -> list[dict[str, Fields]]:
    """Return each window's counts by version."""
    by_teacher = window_errors(task, rows.outputs, rows.teacher)
    by_label = window_errors(task, rows.outputs, rows.labels)
    taught, kinds = rows.compared & rows.events, len(rows.names)
    keys, group = np.unique(rows.owner * kinds + rows.models, return_inverse=True)
    columns = {
        "events": np.full(len(group), float(rows.events)),
        "agreeing": rows.agrees & taught,
        "compared": taught,
        "labelled": rows.told,
        "correct": rows.correct * rows.told,
        "teacher_correct": (rows.compared & task.correct(rows.teacher, rows.labels)) * rows.told,
        "error": np.where(taught, by_teacher, 0.0),
        "label_error": np.where(rows.told != 0, by_label * rows.told, 0.0),
    }
    sums = np.stack([np.bincount(group, columns[name]) for name in NUMBERS], axis=1)
    counts = np.round(sums[:, :COUNTS]).astype(np.int64).tolist()
    figures = np.round(sums[:, COUNTS:], DIGITS).tolist()
    classes = _classes(task, rows, taught, group, len(keys))
    truth = _truth(task, rows, group, len(keys))
    made: list[dict[str, Fields]] = [{} for _ in range(rows.windows)]
    for i, key in enumerate(keys.tolist()):
        numbers = dict(zip(NUMBERS, counts[i] + figures[i], strict=True))
        fields = numbers | {"classes": classes[i], "truth": truth[i]}
        made[key // kinds][rows.names[key % kinds]] = fields
    return made


def _classes(
    task: Task, rows: _Rows, taught: np.ndarray, group: np.ndarray, size: int
) -> list[dict[str, Fields]]:
    """Return each group's agreement by the teacher's class."""
    made: list[dict[str, Fields]] = [{} for _ in range(size)]
    if not task.classes or not taught.any():
        return made
    cells, shape = group * task.outputs + task.answers(rows.teacher), (size, task.outputs)
    right = taught & rows.agrees
    events = np.bincount(cells[taught], minlength=size * task.outputs).reshape(shape)
    agreeing = np.bincount(cells[right], minlength=size * task.outputs).reshape(shape)
    for i, kind in np.argwhere(events).tolist():
        counts: Fields = {"events": int(events[i, kind]), "agreeing": int(agreeing[i, kind])}
        made[i][task.classes[kind]] = counts
    return made


def _truth(
    task: Task, rows: _Rows, group: np.ndarray, size: int
) -> list[dict[str, dict[str, int]]]:
    """Return each group's labelled events by true class and answer."""
    made: list[dict[str, dict[str, int]]] = [{} for _ in range(size)]
    known = rows.told != 0
    if not task.classes or not known.any():
        return made
    labels = rows.labels[known, 0].astype(np.int64)
    answers = task.answers(rows.outputs[known])
    if task.outputs > CONFUSED:
        answers = np.where(rows.correct[known], labels, -1)
    names = [*task.classes, OTHER]
    triples = np.stack([group[known], labels, answers], axis=1)
    cells, place = np.unique(triples, axis=0, return_inverse=True)
    counts = np.bincount(place.reshape(-1), rows.told[known], len(cells)).astype(np.int64)
    for (i, label, answer), count in zip(cells.tolist(), counts.tolist(), strict=True):
        if count:
            made[i].setdefault(names[label], {})[names[answer]] = count
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
