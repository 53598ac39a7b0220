"""The windows of each device, each answered by one version: the data of a rollout's evaluation, in
columns.

A row is a window, or neighbouring ones that were joined. It takes `WINDOW` and a `CELL` for each
class of its events, and of those with a true label, about 81 bytes: the 240 rows of 10,000 devices
take about 195 MB. A new one copies its device's columns and no other's.
"""

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b

import numpy as np

from streams.contract.window_metrics import ALL, ALMOST_ALL, WindowMetric
from streams.contract.window_report import ModelWindow, WindowReport, judgement_of, release_of

KEPT = 240  # rows per device
FULL = 32  # judged events of a row of several windows
TRUE = 1 << 31  # in a cell's class: counted by true labels, not by the teacher

ROW, ROW_CELL = struct.Struct("<qQIIfffH"), struct.Struct("<Iff")
WINDOW = np.dtype([
    ("heard_us", "<i8"), ("model", "<u8"), ("instead", "<u4"), ("windows", "<u4"),
    ("labelled", "<f4"), ("correct", "<f4"), ("taught", "<f4"), ("cells", "<u2"),
])  # fmt: skip
CELL = np.dtype([("kind", "<u4"), ("events", "<f4"), ("right", "<f4")])
NOBODY, SEVERAL = 0, 1  # in the place of a model: nothing was judged; several versions answered


@dataclass(frozen=True)
class Part:
    """Rows of some devices, by device and time, and their cells in the rows' order. counts
    (devices,): rows of each."""

    devices: Sequence[str]
    counts: np.ndarray
    windows: np.ndarray
    cells: np.ndarray

    @cached_property
    def device(self) -> np.ndarray:
        """(rows,) the place in `devices`."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def at(self) -> np.ndarray:
        """(cells,) the row."""
        return np.repeat(np.arange(len(self.windows)), self.windows["cells"])


@dataclass(slots=True)
class _Device:
    """One device's rows by time, `window_us` of the last window, and their cells in the same order;
    as bytes, which are faster to cut and to put together than arrays."""

    times: "array[int]" = field(default_factory=lambda: array("q"))
    windows: bytearray = field(default_factory=bytearray)
    cells: bytearray = field(default_factory=bytearray)

    def put(self, place: int, window_us: int, window: bytes, cells: bytes) -> None:
        start = self._start(place) if place < len(self.times) else len(self.cells)
        self.cells[start:start] = cells
        self.windows[place * ROW.size : place * ROW.size] = window
        self.times.insert(place, window_us)

    def has(self, place: int, window_us: int) -> tuple[bool, bool]:
        """Return whether the row at `place`, the first that does not end before this window, has
        it, and whether it has others."""
        if place == len(self.times):
            return False, False
        joined = bool(np.frombuffer(self.windows, WINDOW, 1, place * ROW.size)["windows"][0] > 1)
        return joined or self.times[place] == window_us, joined

    def take(self, place: int) -> tuple[bytes, bytes]:
        """Remove a row and return it and its cells."""
        start = self._start(place)
        row = slice(place * ROW.size, (place + 1) * ROW.size)
        window = bytes(self.windows[row])
        its = slice(start, start + ROW.unpack(window)[-1] * ROW_CELL.size)
        cells = bytes(self.cells[its])
        del self.cells[its], self.windows[row], self.times[place]
        return window, cells

    def shrink(self, began_us: int | None, kept: int) -> None:
        """Have a row less: of those heard from `began_us` on, if more than half of `kept` are, else
        of the others. Of neighbours that one version answered the two with the fewest events become
        one; where these have more than FULL the oldest goes."""
        rows = np.frombuffer(bytes(self.windows), WINDOW)
        new = rows["heard_us"] >= (np.iinfo(np.int64).max if began_us is None else began_us)
        chosen = new == (new.sum() > kept // 2)
        joinable = chosen[1:] & chosen[:-1]
        for name in ("model", "instead"):
            joinable &= rows[name][1:] == rows[name][:-1]
        events = self._events(rows["cells"])
        both = np.where(joinable, events[1:] + events[:-1], np.inf)
        if both.min(initial=np.inf) > FULL:
            self.take(int(np.argmax(chosen)))
            return
        place = int(both.argmin())
        first, until_us = self.take(place), self.times[place]
        window, cells = _merged(*first, *self.take(place))
        self.put(place, until_us, window, cells)

    def _events(self, counts: np.ndarray) -> np.ndarray:
        """Return (rows,) judged events: those with a true label, or those the teacher judged."""
        cells = np.frombuffer(bytes(self.cells), CELL)
        row, true = np.repeat(np.arange(len(counts)), counts), cells["kind"] >= TRUE
        by = [np.bincount(row, cells["events"] * of, len(counts)) for of in (true, ~true)]
        return np.asarray(np.maximum(*by))

    def _start(self, place: int) -> int:
        """Return where the cells of a window begin."""
        counts = np.frombuffer(self.windows, WINDOW, place)["cells"] if place else np.zeros(0)
        return int(counts.sum()) * ROW_CELL.size


class WindowHistory:
    """The windows of each device by event time, in at most `kept` rows. Those heard from `began_us`
    on have at most the half that the others fill: what a rollout is compared with is there however
    long it takes. Windows of few events are joined before the oldest are let go: a card's 240 days
    of four payments would never show a difference.

    A window's revisions add up; it counts for the version that answered almost all judged events of
    each of them. Labels that come later count while the window of their events is kept. Event times
    that start again, as after a wipe, count when they pass the stored ones. Reports with another
    metric or other classes, by workers with another task file, are ignored, because their sums do
    not add up with the others. classes: None for any.
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
        """Add a report that comes for the first time. heard_us: the message's wall time, so that
        reading it again gives the same."""
        if report.metric != self._metric:
            return
        parts = report.by_release
        judged = [judgement_of(self._metric, part) for part in parts.values()]
        named = {name for each in judged for name in (*each.taught, *each.true)}
        if self._allowed is not None and not self._allowed.issuperset(named):
            return
        device = self._devices.setdefault(report.device, _Device())
        place = bisect_left(device.times, report.window_us)
        known, joined = device.has(place, report.window_us)
        if not report.events:
            if known:
                until_us = device.times[place]
                device.put(place, until_us, *self._labelled(*device.take(place), parts))
            return
        again = known and not joined  # a revision counts no window
        window, cells = self._packed(report, parts, heard_us, windows=not again)
        if again:
            window, cells = _merged(*device.take(place), window, cells)
        device.put(place, report.window_us, window, cells)
        if len(device.times) > self._kept:
            device.shrink(self.began_us, self._kept)

    def _packed(
        self, report: WindowReport, parts: Mapping[str, ModelWindow], heard_us: int, windows: int
    ) -> tuple[bytes, bytes]:
        """Return a report of events as one window and its cells: of the version that answered
        almost all judged events."""
        judged = {name: max(part.compared, part.labelled) for name, part in parts.items()}
        name = max(judged, key=lambda each: judged[each])
        if not judged[name]:
            return ROW.pack(heard_us, NOBODY, 0, windows, 0, 0, 0, 0), b""
        if judged[name] < ALMOST_ALL * sum(judged.values()):
            return ROW.pack(heard_us, SEVERAL, 0, windows, 0, 0, 0, 0), b""
        part, cells = parts[name], self._cells(parts[name])
        answered = (model for model in report.models if release_of(model) == name)
        instead = max(answered, key=lambda model: report.models[model].events)[len(name) :]
        number = model_id(instead) & 0xFFFFFFFF if instead else 0
        labels = part.labelled, part.correct, part.teacher_correct
        row = heard_us, model_id(name), number, windows, *labels, len(cells) // ROW_CELL.size
        return ROW.pack(*row), cells

    def _cells(self, part: ModelWindow) -> bytes:
        kind, judged = self._kinds, judgement_of(self._metric, part)
        found = [(kind.setdefault(name, len(kind)), *s) for name, s in judged.taught.items()]
        found += [(kind.setdefault(name, len(kind)) | TRUE, *s) for name, s in judged.true.items()]
        return b"".join(ROW_CELL.pack(*cell) for cell in found)

    def _labelled(
        self, packed: bytes, packed_cells: bytes, parts: Mapping[str, ModelWindow]
    ) -> tuple[bytes, bytes]:
        """Return a window with labels that came later: those of its version, or, if nothing was
        judged before, of the one that has most."""
        heard_us, model, instead, *_ = ROW.unpack(packed)
        of = {model_id(name): part for name, part in parts.items()}
        if model == NOBODY:
            model = max(of, key=lambda each: of[each].labelled)
        if (part := of.get(model)) is None:
            return packed, packed_cells
        cells = self._cells(part)
        labels = part.labelled, part.correct, part.teacher_correct
        row = heard_us, model, instead, 0, *labels, len(cells) // ROW_CELL.size
        return _merged(packed, packed_cells, ROW.pack(*row), cells)

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


def _merged(
    packed: bytes, packed_cells: bytes, new_packed: bytes, new_cells: bytes
) -> tuple[bytes, bytes]:
    """Return a row and its cells with another one's, or with a revision."""
    window = np.frombuffer(packed, WINDOW).copy()
    new = np.frombuffer(new_packed, WINDOW)
    window["heard_us"] = np.minimum(window["heard_us"], new["heard_us"])
    models = {int(window["model"][0]), int(new["model"][0])} - {NOBODY}
    window["model"] = models.pop() if len(models) == 1 else SEVERAL if models else NOBODY
    for name in ("windows", "labelled", "correct", "taught"):
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
