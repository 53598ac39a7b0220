"""The newest windows of each device, each answered by one version: the data of a rollout's
evaluation, in columns.

A window takes `WINDOW` and a `CELL` for each class of its events, and of those with a true label,
about 85 bytes: the 240 windows of 10,000 devices take about 200 MB. A new one copies its device's
columns and no other's.
"""

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from streams.contract.documents import release_of
from streams.contract.window_metrics import ALL, ALMOST_ALL, ERRORS, Sums, WindowMetric
from streams.contract.window_report import WindowReport

KEPT = 240  # windows per device
REVISIONS = 64  # of a window; later ones do not count
TRUE = 1 << 31  # in a cell's class: counted by true labels, not by what judges the window

ROW, ROW_CELL = struct.Struct("<qQQIfffH"), struct.Struct("<Iff")
WINDOW = np.dtype([
    ("heard_us", "<i8"), ("revisions", "<u8"), ("model", "<u8"), ("instead", "<u4"),
    ("labelled", "<f4"), ("correct", "<f4"), ("taught", "<f4"), ("cells", "<u2"),
])  # fmt: skip
CELL = np.dtype([("kind", "<u4"), ("events", "<f4"), ("right", "<f4")])
NOBODY, SEVERAL = 0, 1  # in the place of a model: nothing was judged; several versions answered


@dataclass(frozen=True)
class Part:
    """Windows of some devices, by device and time, and their cells in the windows' order. counts
    (devices,): windows of each."""

    devices: Sequence[str]
    counts: np.ndarray
    windows: np.ndarray
    cells: np.ndarray

    @cached_property
    def device(self) -> np.ndarray:
        """(windows,) the place in `devices`."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def at(self) -> np.ndarray:
        """(cells,) the window."""
        return np.repeat(np.arange(len(self.windows)), self.windows["cells"])


@dataclass(slots=True)
class _Device:
    """One device's windows by time, `window_us`, and their cells in the same order; as bytes, which
    are faster to cut and to put together than arrays."""

    times: "array[int]" = field(default_factory=lambda: array("q"))
    windows: bytearray = field(default_factory=bytearray)
    cells: bytearray = field(default_factory=bytearray)

    def put(self, place: int, window_us: int, window: bytes, cells: bytes) -> None:
        start = self._start(place) if place < len(self.times) else len(self.cells)
        self.cells[start:start] = cells
        self.windows[place * ROW.size : place * ROW.size] = window
        self.times.insert(place, window_us)

    def take(self, place: int) -> tuple[bytes, bytes]:
        """Remove a window and return it and its cells."""
        start = self._start(place)
        row = slice(place * ROW.size, (place + 1) * ROW.size)
        window = bytes(self.windows[row])
        its = slice(start, start + ROW.unpack(window)[-1] * ROW_CELL.size)
        cells = bytes(self.cells[its])
        del self.cells[its], self.windows[row], self.times[place]
        return window, cells

    def first_out(self, began_us: int | None, kept: int) -> int:
        """Return the place of the window to remove: the oldest of those heard from `began_us` on,
        if more than half of `kept` are, else of the others."""
        if began_us is None:
            return 0
        new = np.frombuffer(self.windows, WINDOW)["heard_us"] >= began_us
        return int(np.argmax(new == (new.sum() > kept // 2)))

    def _start(self, place: int) -> int:
        """Return where the cells of a window begin."""
        counts = np.frombuffer(self.windows, WINDOW, place)["cells"] if place else np.zeros(0)
        return int(counts.sum()) * ROW_CELL.size


class WindowHistory:
    """The newest windows of each device by event time; repeated and unordered reports have no
    effect. Of more than `kept` those heard from `began_us` on have at most the half that the others
    fill: what a rollout is compared with is there however long it takes.

    A window's revisions add up; it counts for the version that answered almost all judged events of
    each of them. Event times that start again from the beginning, as after a wipe, count once they
    pass the stored ones. Reports with another metric or other classes, by workers with another task
    file, are ignored, because their sums do not add up with the others. classes: None for any.
    """

    def __init__(
        self,
        kept: int = KEPT,
        metric: WindowMetric = "accuracy",
        classes: Sequence[str] | None = None,
    ) -> None:
        self._kept, self._metric = kept, metric
        self._allowed = None if classes is None else {ALL, *classes}
        self._kinds: dict[str, int] = {}
        self._devices: dict[str, _Device] = {}
        self.began_us: int | None = None  # of the rollout

    @property
    def classes(self) -> Sequence[str]:
        """The names of cells' classes."""
        return list(self._kinds)

    def add(self, report: WindowReport, heard_us: int) -> None:
        """Add a report. heard_us: the message's wall time, so that reading it again gives the same.
        Of a repeated revision the first one counts."""
        if report.metric != self._metric or report.revision >= REVISIONS:
            return
        told = _told(report)
        named = {*told.sums, *told.true}
        if self._allowed is not None and not self._allowed.issuperset(named):
            return
        device = self._devices.setdefault(report.device, _Device())
        window, cells = self._packed(report, told, heard_us)
        place = bisect_left(device.times, report.window_us)
        if place < len(device.times) and device.times[place] == report.window_us:
            window, cells = _merged(*device.take(place), window, cells)
        device.put(place, report.window_us, window, cells)
        if len(device.times) > self._kept:
            device.take(device.first_out(self.began_us, self._kept))

    def _packed(self, report: WindowReport, told: "_Told", heard_us: int) -> tuple[bytes, bytes]:
        """Return the report as one window and its cells."""
        kind = self._kinds
        found = [(kind.setdefault(name, len(kind)), *s) for name, s in told.sums.items()]
        found += [(kind.setdefault(name, len(kind)) | TRUE, *s) for name, s in told.true.items()]
        cells = b"".join(ROW_CELL.pack(*cell) for cell in found)
        row = (heard_us, 1 << report.revision, *told[:5], len(found))
        return ROW.pack(*row), cells

    def parts(self, size: int) -> Iterator[Part]:
        """Yield all windows, those of `size` devices at a time, by name."""
        names = sorted(self._devices)
        for first in range(0, len(names), size):
            devices = names[first : first + size]
            found = [self._devices[name] for name in devices]
            windows = np.frombuffer(b"".join(each.windows for each in found), WINDOW)
            cells = np.frombuffer(b"".join(each.cells for each in found), CELL)
            counts = np.array([len(each.times) for each in found])
            yield Part(devices, counts, windows, cells)


@lru_cache(1 << 12)
def model_id(name: str) -> int:
    """Return the number that stands for a version: of its name's BLAKE2b digest, so that no table
    of names grows."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") | 2


class _Told(NamedTuple):
    """What a report tells: the version that answered almost all judged events, its labelled and
    correct ones, those of which the teacher is right, and sums by the reference's class, and by
    the true one: of a metric without classes under ALL. instead: the device's challenger that
    answered most of them, under any version; 0: none."""

    model: int
    instead: int = 0
    labelled: int = 0
    correct: int = 0
    taught: int = 0
    sums: Sums = {}
    true: Sums = {}


def _told(report: WindowReport) -> _Told:
    judged = report.judged
    total = sum(events for events, _ in judged.values())
    if not total:
        return _Told(NOBODY)
    name = max(judged, key=lambda each: judged[each][0])
    if judged[name][0] < ALMOST_ALL * total:
        return _Told(SEVERAL)
    counts = report.by_release[name]
    by_class = {kind: (c.events, c.agreeing) for kind, c in report.classes.items() if c.events}
    if report.metric in ERRORS or not by_class:
        told: Sums = {ALL: judged[name]}
        right = counts.label_error if report.metric in ERRORS else counts.correct
        true: Sums = {ALL: (counts.labelled, right)} if counts.labelled else {}
    else:
        told, truth = by_class, report.truth
        true = {kind: (sum(said.values()), said.get(kind, 0)) for kind, said in truth.items()}
    answered = (model for model in report.models if release_of(model) == name)
    instead = max(answered, key=lambda model: report.models[model].events)[len(name) :]
    number = model_id(instead) & 0xFFFFFFFF if instead else 0
    labels = counts.labelled, counts.correct, counts.teacher_correct
    return _Told(model_id(name), number, *labels, told, true)


def _merged(
    packed: bytes, packed_cells: bytes, new_packed: bytes, new_cells: bytes
) -> tuple[bytes, bytes]:
    """Return a window and its cells with another revision, or with one that it has, heard again."""
    window = np.frombuffer(packed, WINDOW).copy()
    new = np.frombuffer(new_packed, WINDOW)
    window["heard_us"] = np.minimum(window["heard_us"], new["heard_us"])
    if (window["revisions"] & new["revisions"])[0]:
        return window.tobytes(), packed_cells
    window["revisions"] |= new["revisions"]
    models = {int(window["model"][0]), int(new["model"][0])} - {NOBODY}
    window["model"] = models.pop() if len(models) == 1 else SEVERAL if models else NOBODY
    for name in ("labelled", "correct", "taught"):
        window[name] += new[name]
    both = np.frombuffer(packed_cells + new_cells, CELL)
    kinds, place = np.unique(both["kind"], return_inverse=True)
    cells = np.zeros(len(kinds), CELL)
    cells["kind"] = kinds
    for name in ("events", "right"):
        cells[name] = np.bincount(place, both[name], len(kinds))
    if window["model"][0] == SEVERAL:
        cells = cells[:0]
    window["cells"] = len(cells)
    return window.tobytes(), cells.tobytes()
