"""What true labels say of a device's answers, by release and class; and which devices got worse.

Labels come in windows (`WindowReport.truth`), with the event or later. A window in which several
releases answered labelled events says nothing.

A device got worse by a release if fewer of its labelled answers are right than under the release
before: by WORSE at least, and by chance in at most CHANCE of cases (Fisher's exact test by its
normal approximation, one-sided), each with LEAST labels; a class of it likewise, by CLASS_WORSE and
CHANCE divided by the number of classes. Neighbouring segments overlap: two count as one.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from streams.contract.window_metrics import ALMOST_ALL
from streams.contract.window_report import WindowReport

RELEASES = 2  # of a device: the one before is what the last is compared with
LEAST, WORSE, CLASS_WORSE, CHANCE = 20, 0.05, 0.1, 0.01
OVERLAP = 2.0

Confusion = dict[str, dict[str, int]]  # true class -> answer -> labelled events


@dataclass(frozen=True)
class Worse:
    """A device, or a class of it ("" for all), that a release made worse; (right, labelled)."""

    device: str
    kind: str
    before: str
    after: str
    was: tuple[int, int]
    now: tuple[int, int]

    @property
    def text(self) -> str:
        """In words, without the device's name."""
        was, now = (right / max(of, 1) for right, of in (self.was, self.now))
        what = f"class {self.kind}: " if self.kind else ""
        return f"{what}{was:.2f} → {now:.2f} on {self.was[1]:,} and {self.now[1]:,} labels"


@dataclass
class Truth:
    """devices: by device and release, the oldest release first."""

    devices: dict[str, dict[str, Confusion]] = field(default_factory=dict)

    def add(self, report: WindowReport) -> None:
        labelled = {name: part.labelled for name, part in report.by_release.items()}
        total = sum(labelled.values())
        if not report.truth or not total:
            return
        release = max(labelled, key=labelled.__getitem__)
        if labelled[release] < ALMOST_ALL * total:
            return
        releases = self.devices.setdefault(report.device, {})
        table = releases.setdefault(release, {})
        while len(releases) > RELEASES:
            del releases[next(iter(releases))]
        for label, answers in report.truth.items():
            row = table.setdefault(label, {})
            for answer, count in answers.items():
                row[answer] = row.get(answer, 0) + count

    def of_release(self, release: str) -> dict[str, Confusion]:
        """Return what devices that have answered with it know of a release."""
        return {name: found[release] for name, found in self.devices.items() if release in found}

    def worse(self, among: Iterable[str] | None = None) -> Iterator[Worse]:
        """Yield the devices that the release which they answered with last made worse, and the
        class that fell most on each."""
        for device in sorted(self.devices if among is None else among):
            releases = self.devices.get(device, {})
            if len(releases) < 2:
                continue
            before, after = list(releases)[-2:]
            was, now = releases[before], releases[after]
            found = Worse(device, "", before, after, right(was), right(now))
            fallen = [
                Worse(device, kind, before, after, of_class(was, kind), of_class(now, kind))
                for kind in was.keys() & now.keys()
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
        for label, answers in table.items():
            row = total.setdefault(label, {})
            for answer, count in answers.items():
                row[answer] = row.get(answer, 0) + count
    return total


def _share(of: tuple[int, int]) -> float:
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
