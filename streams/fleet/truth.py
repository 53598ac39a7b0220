"""What true labels say of a device's answers, by release and class; and which devices got worse.

Labels come in windows (`ModelWindow.truth`), with the event or later, as revisions.

A device got worse by a release if fewer of its labelled answers are right than under the release
that it answered with before (one that was rolled back is left out; one that a person released again
comes after the others): by WORSE at least, and by chance in at most CHANCE of
cases (Fisher's exact test by its normal approximation, one-sided), each with LEAST labels; a class
of it likewise, by CLASS_WORSE and CHANCE divided by the number of classes. Neighbouring segments
overlap: two count as one. Where the metric is an error, the mean of a release's windows is larger
by MORE of it, and by chance (normal approximation) in at most CHANCE of cases, each with LEAST
labels in WINDOWS windows. In a fleet CHANCE is FLEET_CHANCE divided by the devices with labels,
where that is less (Bonferroni): by chance at most FLEET_CHANCE devices are named, and as many for a
class.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from streams.contract.decisions import Decision
from streams.contract.documents import model_number
from streams.contract.task.metrics import named
from streams.contract.window_metrics import ALL, ERRORS, digits
from streams.contract.window_report import OTHER, Confusion, WindowReport, add_confusion
from streams.fleet.wording import counted

RELEASES = 2  # of a device: the one before is what the last is compared with
LEAST, WORSE, CLASS_WORSE, CHANCE, FLEET_CHANCE = 20, 0.05, 0.1, 0.01, 0.05
LABELS, WRONG = 100, 0.75  # of a release, and the share of right answers that is too little
OVERLAP = 2.0
WINDOWS, MORE = 8, 0.1  # of errors

Kept = TypeVar("Kept")


@dataclass
class Errors:
    """Of a release's labelled events: how many, the sum of their errors in `metric`, and of windows
    the number, sum and sum of squares of mean errors."""

    metric: str
    labelled: int = 0
    error: float = 0.0
    windows: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, labelled: int, error: float) -> None:
        """Add a report; one whose labels replace others changes the sum alone."""
        self.labelled += labelled
        self.error += error
        if labelled > 0:
            self.windows += 1
            self.total += error / labelled
            self.squares += (error / labelled) ** 2

    @property
    def mean(self) -> float:
        return self.error / max(self.labelled, 1)

    @property
    def sum(self) -> tuple[float, int]:
        return self.error, self.labelled

    @property
    def variance(self) -> float:
        """Of the mean."""
        n = max(self.windows, 1)
        return max(self.squares / n - (self.total / n) ** 2, 0.0) / max(self.windows - 1, 1)


@dataclass(frozen=True)
class Worse:
    """A device, or a class of it (ALL for all), that a release made worse; (right, labelled), or of
    errors in `metric` (their sum, labelled)."""

    device: str
    kind: str
    before: str
    after: str
    was: tuple[float, int]
    now: tuple[float, int]
    metric: str = ""

    @property
    def text(self) -> str:
        """In words, without the device's name."""
        was, now = (_share(each) for each in (self.was, self.now))
        what = f"class {self.kind}: " if self.kind else ""
        if self.metric:
            root = 0.5 if self.metric == "rmse" else 1.0
            figures = f"{named(self.metric)} {digits(was**root)} → {digits(now**root)}"
        else:
            figures = f"{was:.2f} → {now:.2f}"
        return f"{what}{figures} on {self.was[1]:,} and {self.now[1]:,} labels"


@dataclass(frozen=True)
class Wrong:
    """A release that is right too seldom, in words, and the device on which it is worst."""

    text: str
    device: str
    share: float


@dataclass
class Truth:
    """devices: by device and release, first the one that it answered with before; errors likewise.
    answered: with each, in which window last, microseconds. withdrawn: releases that were rolled
    back, of which nothing is kept."""

    devices: dict[str, dict[str, Confusion]] = field(default_factory=dict)
    errors: dict[str, dict[str, Errors]] = field(default_factory=dict)
    answered: dict[str, dict[str, int]] = field(default_factory=dict)
    withdrawn: set[str] = field(default_factory=set)

    def forget(self, device: str) -> None:
        """Leave a device out."""
        for kept in (self.devices, self.errors, self.answered):
            kept.pop(device, None)

    def decide(self, decision: Decision) -> None:
        """Forget a release that is rolled back, until it is offered again."""
        if decision.model is None:
            return
        self.withdrawn.discard(decision.model)
        if decision.kind == "rolled-back":
            self.withdrawn.add(decision.model)
            for kept in (self.devices, self.errors, self.answered):
                for releases in kept.values():
                    releases.pop(decision.model, None)

    def add(self, report: WindowReport) -> bool:
        """Return whether the report has labels."""
        said = False
        for release, part in report.by_release.items():
            if not (part.truth or part.labelled or part.correct or part.label_error):
                continue
            if release in self.withdrawn:
                continue
            said = True
            if not part.truth and report.metric in ERRORS:
                sums = self._latest(self.errors, report, release, Errors(report.metric))
                sums.add(part.labelled, part.label_error)
                continue
            wrong = part.labelled - part.correct
            truth = part.truth or {ALL: {ALL: part.correct, OTHER: wrong}}
            add_confusion(self._latest(self.devices, report, release, {}), truth)
        return said

    def _latest(
        self, kept: dict[str, dict[str, Kept]], report: WindowReport, release: str, empty: Kept
    ) -> Kept:
        """Return what is kept of a device's release, one of the last RELEASES that it answered
        with: a label may come when others have followed."""
        releases = kept.setdefault(report.device, {})
        found = releases.setdefault(release, empty)
        times = self.answered.setdefault(report.device, {})
        times[release] = max(report.window_us, times.get(release, 0))
        last = sorted(releases, key=lambda each: (times.get(each, 0), model_number(each)))
        kept[report.device] = {name: releases[name] for name in last[-RELEASES:]}
        self.answered[report.device] = {name: times.get(name, 0) for name in last[-RELEASES:]}
        return found

    def of_release(self, release: str) -> dict[str, Confusion]:
        """Return what devices that have answered with it know of a release."""
        return {name: found[release] for name, found in self.devices.items() if release in found}

    def wrong(self, release: str) -> Wrong | None:
        """Return that a release is right on less than WRONG of at least LABELS labels."""
        tables = self.of_release(release)
        total = together(tables)
        if (found := right(total))[1] < LABELS or _share(found) >= WRONG:
            return None
        shares = {name: right(table) for name, table in tables.items()}
        worst = min(shares, key=lambda name: shares[name][0] / max(shares[name][1], LEAST))
        classes = {name: of_class(total, name) for name in total if name != ALL}
        kind = min(classes, key=lambda name: _share(classes[name]), default=ALL)
        parts = f"worst: device {worst} {_of(shares[worst])}"
        parts += f", class {kind} {_of(classes[kind])}" if kind else ""
        text = f"{release} is right on {_of(found)}, by true labels; {parts}"
        return Wrong(text, worst, _share(found))

    def worse(self, among: Iterable[str] | None = None) -> Iterator[Worse]:
        """Yield the devices that the release which they answered with last made worse, and the
        class that fell most on each."""
        chance = min(CHANCE, FLEET_CHANCE / max(len(self.devices) + len(self.errors), 1))
        for device in sorted({*self.devices, *self.errors} if among is None else among):
            if len(errors := self.errors.get(device, {})) == RELEASES:
                (before, of_before), (after, of_after) = errors.items()
                if _rose(of_before, of_after, chance):
                    sums = of_before.sum, of_after.sum
                    yield Worse(device, ALL, before, after, *sums, of_after.metric)
            if len(releases := self.devices.get(device, {})) < RELEASES:
                continue
            (before, was), (after, now) = releases.items()
            found = Worse(device, ALL, before, after, right(was), right(now))
            fallen = [
                Worse(device, kind, before, after, of_class(was, kind), of_class(now, kind))
                for kind in (was.keys() & now.keys()) - {ALL}
            ]
            of_one = chance / max(len(fallen), 1)
            fallen = [each for each in fallen if _fell(each, CLASS_WORSE, of_one)]
            if _fell(found, WORSE, chance):
                yield found
            if fallen:
                yield max(fallen, key=lambda each: _share(each.was) - _share(each.now))


def right(table: Confusion) -> tuple[int, int]:
    """Return how many labelled events are right, and how many there are."""
    found = [of_class(table, label) for label in table]
    return sum(n for n, _ in found), sum(of for _, of in found)


def of_class(table: Confusion, label: str) -> tuple[int, int]:
    """Return the same of one true class."""
    return table[label].get(label, 0), sum(table[label].values())


def together(tables: Mapping[str, Confusion]) -> Confusion:
    """Return the sum over devices."""
    total: Confusion = {}
    for table in tables.values():
        add_confusion(total, table)
    return total


def _of(counts: tuple[int, int]) -> str:
    return f"{_share(counts):.2f} of {counted(counts[1], 'label')}"


def _share(of: tuple[float, int]) -> float:
    return of[0] / max(of[1], 1)


def _fell(found: Worse, by: float, chance: float) -> bool:
    """Return whether a share fell beyond chance."""
    (right_was, was), (right_now, now) = found.was, found.now
    if min(was, now) < LEAST or _share(found.was) - _share(found.now) < by:
        return False
    pooled = (right_was + right_now) / (was + now)
    spread = math.sqrt(pooled * (1 - pooled) * OVERLAP * (1 / was + 1 / now))
    deviations = (_share(found.was) - _share(found.now)) / max(spread, 1e-9)
    return 0.5 * math.erfc(deviations / math.sqrt(2)) <= chance


def _rose(was: Errors, now: Errors, chance: float) -> bool:
    """Return whether an error grew beyond chance."""
    if min(was.labelled, now.labelled) < LEAST or min(was.windows, now.windows) < WINDOWS:
        return False
    more, spread = now.mean - was.mean, math.sqrt(was.variance + now.variance)
    if more < MORE * was.mean or not more:
        return False
    return 0.5 * math.erfc(more / max(spread, 1e-12) / math.sqrt(2)) <= chance
