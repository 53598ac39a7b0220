"""The newest windows of each device, each answered by one version: what a rollout is judged by."""

from bisect import insort
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from streams.contract.documents import WindowReport

KEPT = 240  # windows a device
ALMOST_ALL = 0.95  # of a window's events are by one version, or it says nothing of any


@dataclass(frozen=True, order=True)
class Window:
    """One device's window answered by one version; counts: events and agreeing ones by the
    teacher's class, "" where the task has none."""

    device: str
    window_us: int
    heard_us: int
    model: str
    counts: Mapping[str, tuple[int, int]]
    labelled: int = 0
    correct: int = 0


class Windows:
    """The newest windows of each device, by event time, whatever comes again or out of order.

    A window's revisions sum. An event time that starts again from the beginning, as a wiped
    device's does, counts once it has passed what is kept.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._reports: dict[str, dict[int, dict[int, tuple[int, WindowReport]]]] = defaultdict(dict)
        self._order: dict[str, list[int]] = defaultdict(list)
        self._made: dict[tuple[str, int], Window | None] = {}

    def add(self, report: WindowReport, heard_us: int) -> None:
        """heard_us: wall time; that of the message, so that reading it again gives the same."""
        seen, order = self._reports[report.device], self._order[report.device]
        if report.window_us not in seen:
            if len(order) == self._kept:
                if report.window_us < order[0]:
                    return
                self._made.pop((report.device, order[0]), None)
                del seen[order.pop(0)]
            insort(order, report.window_us)
            seen[report.window_us] = {}
        revisions = seen[report.window_us]
        before = revisions.get(report.revision)
        if before is None or heard_us < before[0]:
            slim = report.model_copy(update={"drift": None, "errors": {}})  # most of its size
            revisions[report.revision] = heard_us, slim
            made = _window(revisions)
            self._made[report.device, report.window_us] = made

    def by(self, model: str) -> list[Window]:
        """Those that release `model` or devices' copies of it answered, by device and time."""
        found = [window for window in self._made.values() if window and window.model == model]
        return sorted(found, key=lambda window: (window.device, window.window_us))


def _window(revisions: Mapping[int, tuple[int, WindowReport]]) -> Window | None:
    """None where nothing was compared, or more than one version answered."""
    by_model: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(4, np.int64))
    classes: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2, np.int64))
    for _, report in revisions.values():
        for model, m in report.by_release.items():
            by_model[model] += (m.compared, m.agreeing, m.labelled, m.correct)
        for name, c in report.classes.items():
            classes[name] += (c.events, c.agreeing)
    compared = sum(int(counts[0]) for counts in by_model.values())
    if not compared:
        return None
    model, counts = max(sorted(by_model.items()), key=lambda item: int(item[1][0]))
    if counts[0] < ALMOST_ALL * compared:
        return None
    whole = {name: (int(n), int(a)) for name, (n, a) in sorted(classes.items()) if n}
    report = next(iter(revisions.values()))[1]
    return Window(
        device=report.device,
        window_us=report.window_us,
        heard_us=min(heard for heard, _ in revisions.values()),
        model=model,
        counts=whole or {"": (int(counts[0]), int(counts[1]))},
        labelled=int(counts[2]),
        correct=int(counts[3]),
    )
