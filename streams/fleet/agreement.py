"""What windows say of a version: sums, and the evidence about a canary. Pure."""

from dataclasses import dataclass, field
from typing import NamedTuple

from streams.contract.window_metrics import (
    ERRORS,
    Judgement,
    WindowMetric,
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
