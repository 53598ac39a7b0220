"""What windows say of a version: sums, the evidence about a canary, and reports that come again, in
memory that grows with the fleet alone. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from streams.contract.window_metrics import ERRORS, Sums, WindowMetric, added, named, value_of
from streams.contract.window_report import ModelWindow, WindowReport

EVERY_S, POINTS = 15.0, 500  # between two evaluations that are kept; of them
COUNTS = ("events", "compared", "agreeing", "labelled", "correct")


@dataclass
class Agreement:
    """Events of one release in closed windows. sums: `WindowReport.sums`."""

    metric: WindowMetric = "accuracy"
    windows: int = 0
    events: int = 0
    compared: int = 0
    agreeing: int = 0
    labelled: int = 0
    correct: int = 0
    judged_by_labels: int = 0  # windows
    sums: Sums = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        """The metric that windows tell; None without a judged event."""
        return value_of(self.metric, self.sums)

    @property
    def by_labels(self) -> bool:
        """Whether true labels have judged most windows."""
        return 2 * self.judged_by_labels > self.windows

    @property
    def lower_is_better(self) -> bool:
        return self.metric in ERRORS

    @property
    def called(self) -> str:
        return named(self.metric, by_labels=self.by_labels)

    def add(self, report: WindowReport, release: str, part: ModelWindow) -> None:
        if report.metric != self.metric:  # another task file: what was before does not add up
            self.metric, self.sums = report.metric, {}
        self.judged_by_labels += report.by_labels
        self.sums = added((self.sums, report.sums(release)))
        self.windows += 1
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(part, name))


class Odds(NamedTuple):
    """The likelihood ratios at one moment: that the canary is worse to that it is not, and the
    other way round, against a loss that matters."""

    at_us: int
    worse: float
    fine: float


@dataclass
class Evidence:
    """The controller's evaluations of the version that it offers, the newest last, and what the
    last one found, in words."""

    version: str = ""
    words: str = ""
    odds: list[Odds] = field(default_factory=list)

    def note(self, version: str, words: str, odds: Odds) -> None:
        """Add an evaluation, at most one in EVERY_S, and the newest POINTS."""
        if version != self.version:
            self.version, self.odds = version, []
        self.words = words
        if not self.odds or odds.at_us - self.odds[-1].at_us >= EVERY_S * 1e6:
            self.odds.append(odds)
            del self.odds[:-POINTS]


# --- reports that come again ----------------------------------------------------------------------

RECENT = 32  # reports of each device: a worker repeats at most its last commit
REVISIONS = 64  # later ones of a window count as this one
PARTITIONS = 8191  # odd, so that other names stay others
NONE, LARGEST = np.iinfo(np.int64).min, 2**63


class RecentReports:
    """The last `kept` reports of each device, by window, revision and Kafka partition: events
    without a key are in several."""

    def __init__(self, kept: int = RECENT) -> None:
        self._kept = kept
        self._row: dict[str, int] = {}
        self._names = np.full((16, kept), NONE)
        self._next = np.zeros(16, np.int64)

    def is_new(self, device: str, window_us: int, revision: int, partition: int = 0) -> bool:
        """Return whether the report was not among the device's last ones, and remember it."""
        name = window_us * REVISIONS + min(revision, REVISIONS - 1)
        return self._add(device, (name * PARTITIONS + partition) % LARGEST)

    def _add(self, device: str, name: int) -> bool:
        row = self._row.setdefault(device, len(self._row))
        if row == len(self._next):
            self._names = np.concatenate([self._names, np.full_like(self._names, NONE)])
            self._next = np.concatenate([self._next, np.zeros_like(self._next)])
        if (self._names[row] == name).any():
            return False
        self._names[row, self._next[row] % self._kept] = name
        self._next[row] += 1
        return True

    def dump(self) -> dict[str, list[int]]:
        """Return each device's reports, the oldest first."""
        return {
            device: [int(x) for x in np.roll(self._names[row], -self._next[row]) if x != NONE]
            for device, row in self._row.items()
        }

    @classmethod
    def load(cls, found: Mapping[str, list[int]]) -> "RecentReports":
        made = cls()
        for device, names in found.items():
            for name in names:
                made._add(device, name)
        return made
