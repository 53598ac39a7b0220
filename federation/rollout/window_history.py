"""The newest windows of each device, each answered by one version: the data of a rollout's
evaluation."""

import operator
import sys
from bisect import insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from streams.contract.window_metrics import ALL, ALMOST_ALL, ERRORS, WindowMetric
from streams.contract.window_report import WindowReport

KEPT = 240  # windows per device

Sums = tuple[tuple[str, tuple[float, ...]], ...]  # by name, in their order


class Part(NamedTuple):
    """The sums of one report. `models`: events judged, right or the errors of these
    (`WindowReport.judged`), labelled and correct; `classes`: events and agreeing ones."""

    revision: int
    heard_us: int
    models: Sums
    classes: Sums


@dataclass(frozen=True, slots=True)
class HistoryWindow:
    """One device's window, the sum of its `parts`. `model`: the version that answered it, None if
    nothing was judged or several answered. A fleet of 1000 has 240,000 of these."""

    device: str
    window_us: int
    parts: tuple[Part, ...]
    heard_us: int
    models: Sums
    classes: Sums
    model: str | None

    @property
    def counts(self) -> Sums:
        """Events and agreeing ones by the reference's class; of tasks without classes events and
        those within the tolerance, or their errors, under ALL."""
        return self.classes or ((ALL, self._answered[:2]),)

    @property
    def labelled(self) -> float:
        return self._answered[2]

    @property
    def correct(self) -> float:
        return self._answered[3]

    @property
    def _answered(self) -> tuple[float, ...]:
        return next((sums for name, sums in self.models if name == self.model), (0, 0, 0, 0))


class WindowHistory:
    """The newest windows of each device by event time; repeated and unordered reports have no
    effect.

    A window's revisions add up. Event times that start again from the beginning, as after a wipe,
    count once they pass the stored ones. Reports with another metric, by workers with an older task
    file, are ignored, because their sums do not add up with the others.
    """

    def __init__(self, kept: int = KEPT, metric: WindowMetric = "accuracy") -> None:
        self._kept, self._metric = kept, metric
        self._windows: dict[str, dict[int, HistoryWindow]] = defaultdict(dict)
        self._order: dict[str, list[int]] = defaultdict(list)

    def add(self, report: WindowReport, heard_us: int) -> None:
        """Add a report. heard_us: the message's wall time, so that reading it again gives the same.
        Of a repeated revision the first one counts."""
        if report.metric != self._metric:
            return
        device = sys.intern(report.device)
        seen, order = self._windows[device], self._order[device]
        before = seen.get(report.window_us)
        if before is None:
            if len(order) == self._kept:
                if report.window_us < order[0]:
                    return
                del seen[order.pop(0)]
            insort(order, report.window_us)
        parts = {part.revision: part for part in before.parts} if before else {}
        known = parts.get(report.revision)
        if known is None or heard_us < known.heard_us:
            parts[report.revision] = _part(report, heard_us)
            seen[report.window_us] = _window(device, report.window_us, sorted(parts.values()))

    def by(self, model: str) -> list[HistoryWindow]:
        """Return the windows answered by release `model` or its personal models, by device and
        time."""
        return [window for window in self._all() if window.model == model]

    def _all(self) -> Iterator[HistoryWindow]:
        for device in sorted(self._windows):
            seen = self._windows[device]
            for window_us in self._order[device]:
                yield seen[window_us]


def _part(report: WindowReport, heard_us: int) -> Part:
    judged = report.judged
    models = [
        (sys.intern(name), (*judged[name], m.labelled, m.correct))
        for name, m in report.by_release.items()
    ]
    classes = [
        (sys.intern(name), (c.events, c.agreeing))
        for name, c in report.classes.items()
        if c.events and report.metric not in ERRORS  # whose errors are not by class
    ]
    shared_models, shared_classes = _shared(tuple(sorted(models))), _shared(tuple(sorted(classes)))
    return Part(report.revision, heard_us, shared_models, shared_classes)


@lru_cache(1 << 16)
def _shared(sums: Sums) -> Sums:
    """Return one object for all equal values, to save memory: a fleet's windows are similar."""
    return sums


def _window(device: str, window_us: int, parts: Sequence[Part]) -> HistoryWindow:
    models, classes = _sum([p.models for p in parts]), _sum([p.classes for p in parts])
    heard_us = min(part.heard_us for part in parts)
    return HistoryWindow(device, window_us, tuple(parts), heard_us, models, classes, _only(models))


def _sum(parts: Sequence[Sums]) -> Sums:
    if len(parts) == 1:
        return parts[0]
    sums: dict[str, tuple[float, ...]] = {}
    for name, counts in chain.from_iterable(parts):
        sums[name] = tuple(map(operator.add, sums.get(name, (0,) * len(counts)), counts))
    return tuple(sorted(sums.items()))


def _only(models: Sums) -> str | None:
    """Return the version that answered almost all judged events."""
    judged = sum(counts[0] for _, counts in models)
    if not judged:
        return None
    model, counts = max(models, key=lambda item: item[1][0])
    return model if counts[0] >= ALMOST_ALL * judged else None
