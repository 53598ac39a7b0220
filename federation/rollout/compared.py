"""Which windows an evaluation compares, as columns and in parts of the fleet. Pure.

A fleet's windows are too many for a table of windows and classes, so those of some devices come at
a time, and an evaluation goes through them several times.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from federation.rollout.window_history import KEPT, TRUE, Part, WindowHistory, model_id
from streams.contract.window_metrics import LABELLED, is_by_labels
from streams.contract.window_report import JUDGING

VALUES = 100_000  # of a part of the fleet: a table of its windows and classes takes 1 MB
ENOUGH = 60  # newest windows of a canary's past, which always count: fewer predict nothing
USUAL = 7  # newest windows of a device's past: most of them show how it answered


@dataclass(frozen=True)
class Counted:
    """Rows of windows by device and time: `device` and number of `windows` (rows,), and their
    cells: events `n` and right ones, or errors, `a` (cells,) in a row `at` of a class `kind`."""

    device: np.ndarray
    windows: np.ndarray
    at: np.ndarray
    kind: np.ndarray
    n: np.ndarray
    a: np.ndarray

    def sums(self, rows: np.ndarray, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (count, classes) events and right ones; rows: (rows,) the place of each row."""
        cell = rows[self.at] * classes + self.kind
        n, a = (np.bincount(cell, each, count * classes) for each in (self.n, self.a))
        return n.reshape(count, classes), a.reshape(count, classes)

    def by_row(self, values: np.ndarray) -> np.ndarray:
        """Return (rows,) the sums of (cells,) values."""
        return np.bincount(self.at, values, len(self.device))


NOTHING = Counted(*(np.zeros(0, of) for of in (int, int, int, int, float, float)))


class Compared:
    """The windows of a part of the fleet: with the previous version before the rollout, since then
    on devices without the new one, and with the new version.

    Of the previous version those count that a device answered as it did most of the last USUAL
    before: behind the same adapter, or with the same other challenger. One window does not show it:
    a device that is given back its version answers without its adapter until that is fitted, and
    its past without one is that of the drift. What a device outside gains by a new one meanwhile is
    not expected of the canary, which trains nothing; nor is a past without it the measure of a
    canary that answers behind one, unless there is less than ENOUGH of the other: all devices of a
    last stage may have begun with an adapter shortly before, and nothing adds to their past.
    """

    def __init__(self, part: Part, comparison: "Comparison") -> None:
        self._part, self._comparison = part, comparison
        self.devices = len(part.devices)

    @cached_property
    def past(self) -> Counted:
        return self._counted(self.is_past)

    @cached_property
    def others(self) -> Counted:
        return self._counted(self._stable & ~self._last & self._as_before)

    @cached_property
    def tests(self) -> Counted:
        return self._counted(self.is_test)

    @property
    def is_past(self) -> np.ndarray:
        newest = self._offered & (self._later < ENOUGH)
        return np.asarray(self._before & (self._as_before | newest))

    @property
    def is_test(self) -> np.ndarray:
        new = self._part.windows["model"] == model_id(self._comparison.candidate)
        return np.asarray(new & self._offered)

    @cached_property
    def _stable(self) -> np.ndarray:
        return np.asarray(self._part.windows["model"] == model_id(self._comparison.stable))

    @cached_property
    def _last(self) -> np.ndarray:
        """Before the rollout, or before the device was offered the new version."""
        before = self._part.windows["heard_us"] < self._comparison.began_us
        return np.asarray(before | self._offered)

    @cached_property
    def _before(self) -> np.ndarray:
        return np.asarray(self._stable & self._last)

    @cached_property
    def _later(self) -> np.ndarray:
        """(rows,) how many past windows of its device come after it."""
        count = np.cumsum(self._before)
        ends = np.cumsum(self._part.counts)
        return np.asarray(count[ends - 1][self._part.device] - count if len(count) else count)

    @cached_property
    def _as_before(self) -> np.ndarray:
        """Whether the challenger that answered is that of most of the device's last past windows;
        of equally many the later."""
        instead, device = self._part.windows["instead"], self._part.device
        last = np.flatnonzero(self._before & (self._later < USUAL))
        pairs, which = np.unique(
            np.stack([device[last], instead[last]]), axis=1, return_inverse=True
        )
        votes = np.bincount(which, 1 + 1 / (USUAL + self._later[last]))
        most = np.lexsort([votes, pairs[0]])  # of each device the last is the one with most
        usual = np.full(self.devices, -1)
        usual[pairs[0][most]] = pairs[1][most]
        return np.asarray((usual[device] < 0) | (instead == usual[device]))

    @cached_property
    def _offered(self) -> np.ndarray:
        offered = [self._comparison.canary(name) for name in self._part.devices]
        return np.repeat(np.array(offered, bool), self._part.counts)

    @property
    def counts(self) -> np.ndarray:
        """Windows with the new version, those of the stage, its events that a teacher judged, those
        that have a true label, those where it is right and where the teacher is; and of the past
        the judged events, the labelled and the right ones."""
        windows, test, past = self._part.windows, self.is_test, self.is_past
        found, before = windows[test], windows[past]
        stage = found["windows"][found["heard_us"] >= self._comparison.stage_began_us].sum()
        labels = [found[name].sum() for name in ("labelled", "correct", "taught")]
        right = [before[name].sum() for name in ("labelled", "correct")]
        judged = [self._compared[rows].sum() for rows in (test, past)]
        return np.array([found["windows"].sum(), stage, judged[0], *labels, judged[1], *right])

    @cached_property
    def _compared(self) -> np.ndarray:
        """(rows,) events that a teacher judged."""
        cells = self._part.cells
        events = np.where(cells["kind"] < TRUE, cells["events"], 0)
        return np.bincount(self._part.at, events, len(self._part.windows))

    def _counted(self, rows: np.ndarray) -> Counted:
        """Return the rows for which `rows` (rows,) is true."""
        if not rows.any():
            return NOTHING
        part, kinds = self._part, self._part.cells["kind"].astype(np.int64)
        judging = (kinds >= TRUE) == self._comparison.by_labels
        cells = np.flatnonzero(rows[part.at] & judging)
        at = (np.cumsum(rows) - 1)[part.at[cells]]
        found = part.cells[cells]
        n, a = found["events"].astype(np.float64), found["right"].astype(np.float64)
        windows = part.windows["windows"][rows].astype(int)
        return Counted(part.device[rows], windows, at, kinds[cells] % TRUE, n, a)


Parts = Callable[[], Iterator[Compared]]


@dataclass(frozen=True)
class Comparison:
    """The windows that an evaluation compares. began_us, stage_began_us: of the rollout; canary:
    whether a device is offered the candidate; by_labels: the true labels judge, not the teacher."""

    history: WindowHistory
    candidate: str
    stable: str
    began_us: int
    stage_began_us: int
    canary: Callable[[str], bool]
    by_labels: bool = False

    @property
    def has_labels(self) -> bool:
        """Whether true labels judge the new version, and the past."""
        _, _, compared, labelled, _, _, past, known, _ = self._counts
        return is_by_labels(compared, labelled) and known >= LABELLED * past

    @property
    def teacher_is_weaker(self) -> bool:
        """Whether the candidate is right at least as often as the teacher, on enough events that
        have a true label."""
        _, _, _, labelled, correct, taught, *_ = self._counts
        return labelled >= JUDGING and correct >= taught

    @property
    def labels_compare(self) -> bool:
        """Whether events with a true label can be compared: the past has enough of them."""
        _, _, _, labelled, _, _, _, known, _ = self._counts
        return labelled > 0 and known >= JUDGING

    def parts(self) -> Iterator[Compared]:
        """Yield the fleet's parts, at each call the same."""
        classes = max(len(self.history.classes), 1)
        for part in self.history.parts(max(1, VALUES // (classes * KEPT))):
            yield Compared(part, self)

    def told(self) -> dict[str, float]:
        """Return how many windows and labelled events with the new version there are, and the
        accuracies where events have a true label: for information only."""
        windows, stage, _, labelled, correct, _, _, before, right = self._counts
        found = {"windows": windows, "stage_windows": stage, "labelled": labelled}
        if labelled:
            found["accuracy"] = correct / labelled
        if before:
            found["accuracy_before"] = right / before
        return found

    @cached_property
    def _counts(self) -> list[float]:
        sums: list[float] = sum((part.counts for part in self.parts()), np.zeros(9)).tolist()
        return sums
