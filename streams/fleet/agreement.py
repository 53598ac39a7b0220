"""What windows say of a version: sums, and the evidence about a canary; and which reports on
`windows` came before. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from streams.contract.window_metrics import (
    ERRORS,
    Judgement,
    WindowMetric,
    events_in,
    named,
    value_of,
)
from streams.contract.window_report import ModelWindow, WindowReport, judgement_of

EVERY_S, POINTS = 15.0, 500  # between two evaluations that are kept; of them
COUNTS = ("events", "compared", "agreeing", "labelled", "correct")


@dataclass
class Agreement:
    """Events of one release in closed windows."""

    metric: WindowMetric = "accuracy"
    windows: int = 0
    events: int = 0
    compared: int = 0
    agreeing: int = 0
    labelled: int = 0
    correct: int = 0
    judgement: Judgement = field(default_factory=Judgement)

    @property
    def value(self) -> float | None:
        """The metric that windows tell; None without a judged event."""
        return value_of(self.metric, self.judgement.sums)

    @property
    def judged(self) -> int:
        """How many events `value` is of: those with a label, or with a teacher's answer."""
        return int(events_in(self.judgement.sums))

    @property
    def by_labels(self) -> bool:
        """Whether true labels judge, not the teacher."""
        return self.judgement.by_labels

    @property
    def lower_is_better(self) -> bool:
        return self.metric in ERRORS

    @property
    def called(self) -> str:
        return named(self.metric, by_labels=self.by_labels)

    def add(self, report: WindowReport, part: ModelWindow) -> None:
        """Add what a report says of the release, one of its `by_release`."""
        if report.metric != self.metric:  # another task file: what was before does not add up
            self.metric, self.judgement = report.metric, Judgement()
        self.judgement += judgement_of(report.metric, part)
        self.windows += report.events > 0
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

Last = tuple[str, int, list[int]]  # of a partition: the store, its newest commit, its reports


class SeenReports:
    """Which reports came before, in memory that neither the fleet's size nor time adds to.

    A worker publishes a commit's reports in their order of commits, and again only those of a
    commit that may not have been published whole (streams.worker.commit.committer). So of each
    Kafka partition a reader remembers the newest commit and the names of its reports: what is of an
    earlier one came before. Rows and labels have commits of their own. Another store, as after one
    was deleted, counts anew.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, int, set[int]]] = {}

    def is_new(self, report: WindowReport) -> bool:
        """Return whether the report was not seen, and remember it."""
        place = f"{report.partition}/{'rows' if report.events else 'labels'}"
        store, commit, names = self._last.get(place, (report.store, -1, set()))
        if store == report.store and report.commit < commit:
            return False
        if (store, commit) != (report.store, report.commit):
            names = set()
        self._last[place] = report.store, report.commit, names
        name = f"{report.device} {report.window_us} {report.revision}".encode()
        number = int.from_bytes(blake2b(name, digest_size=8).digest(), "big")
        if number in names:
            return False
        names.add(number)
        return True

    def dump(self) -> dict[str, Last]:
        return {place: (s, n, sorted(names)) for place, (s, n, names) in self._last.items()}

    @classmethod
    def load(cls, found: Mapping[str, Last]) -> "SeenReports":
        made = cls()
        for place, (store, commit, names) in found.items():
            made._last[place] = store, commit, set(names)
        return made
