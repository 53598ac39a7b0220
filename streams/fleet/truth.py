"""What true labels say of a device's answers, by release and class; and which devices got worse.

Labels come in windows (`WindowReport.truth`), with the event or later. A window in which several
releases answered labelled events says nothing.

A device got worse by a release if fewer of its labelled answers are right than under the release
before: by WORSE at least, and by chance in at most CHANCE of cases (Fisher's exact test by its
normal approximation, one-sided), each with LEAST labels; a class of it likewise, by CLASS_WORSE and
CHANCE divided by the number of classes. Neighbouring segments overlap: two count as one. Where the
metric is an error, the mean of a release's windows is larger by MORE of it, and by chance (normal
approximation) in at most CHANCE of cases, each with LEAST labels in WINDOWS windows.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from streams.contract.task.metrics import named
from streams.contract.window_metrics import ALL, ALMOST_ALL, ERRORS, digits
from streams.contract.window_report import OTHER, WindowReport
from streams.fleet.wording import counted

RELEASES = 2  # of a device: the one before is what the last is compared with
LEAST, WORSE, CLASS_WORSE, CHANCE = 20, 0.05, 0.1, 0.01
LABELS, WRONG = 100, 0.75  # of a release, and the share of right answers that is too little
OVERLAP = 2.0
WINDOWS, MORE = 8, 0.1  # of errors

Confusion = dict[str, dict[str, int]]  # true class -> answer -> labelled events
Kept = TypeVar("Kept")


@dataclass
class Errors:
    """Of a release's labelled events: how many, and the number, sum and sum of squares of windows'
    mean errors in `metric`."""

    metric: str
    labelled: int = 0
    windows: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, labelled: int, error: float) -> None:
        self.labelled += labelled
        self.windows += 1
        self.total += error / labelled
        self.squares += (error / labelled) ** 2

    @property
    def mean(self) -> float:
        return self.total / self.windows

    @property
    def sum(self) -> tuple[float, int]:
        return self.mean * self.labelled, self.labelled

    @property
    def variance(self) -> float:
        """Of the mean."""
        return max(self.squares / self.windows - self.mean**2, 0.0) / max(self.windows - 1, 1)


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
    """devices: by device and release, the oldest release first; errors likewise."""

    devices: dict[str, dict[str, Confusion]] = field(default_factory=dict)
    errors: dict[str, dict[str, Errors]] = field(default_factory=dict)

    def add(self, report: WindowReport) -> bool:
        """Return whether the window says something."""
        parts = report.by_release
        total = sum(part.labelled for part in parts.values())
        if not total:
            return False
        release = max(parts, key=lambda name: parts[name].labelled)
        found = parts[release]
        if found.labelled < ALMOST_ALL * total:
            return False
        if not report.truth and report.metric in ERRORS:
            sums = _latest(self.errors, report.device, release, Errors(report.metric))
            sums.add(found.labelled, found.label_error)
            return True
        table = _latest(self.devices, report.device, release, {})
        wrong = found.labelled - found.correct
        _merge(table, report.truth or {ALL: {ALL: found.correct, OTHER: wrong}})
        return True

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
        for device in sorted({*self.devices, *self.errors} if among is None else among):
            if len(errors := self.errors.get(device, {})) == RELEASES:
                (before, of_before), (after, of_after) = errors.items()
                if _rose(of_before, of_after):
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
            fallen = [
                each for each in fallen if _fell(each, CLASS_WORSE, CHANCE / max(len(fallen), 1))
            ]
            if _fell(found, WORSE, CHANCE):
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
        _merge(total, table)
    return total


def _merge(total: Confusion, table: Mapping[str, Mapping[str, int]]) -> None:
    for label, answers in table.items():
        row = total.setdefault(label, {})
        for answer, count in answers.items():
            row[answer] = row.get(answer, 0) + count


def _latest(kept: dict[str, dict[str, Kept]], device: str, release: str, empty: Kept) -> Kept:
    """Return what is kept of a device's release, one of the last RELEASES."""
    releases = kept.setdefault(device, {})
    found = releases.setdefault(release, empty)
    while len(releases) > RELEASES:
        del releases[next(iter(releases))]
    return found


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


def _rose(was: Errors, now: Errors) -> bool:
    """Return whether an error grew beyond chance."""
    if min(was.labelled, now.labelled) < LEAST or min(was.windows, now.windows) < WINDOWS:
        return False
    more, spread = now.mean - was.mean, math.sqrt(was.variance + now.variance)
    if more < MORE * was.mean or not more:
        return False
    return 0.5 * math.erfc(more / max(spread, 1e-12) / math.sqrt(2)) <= CHANCE
