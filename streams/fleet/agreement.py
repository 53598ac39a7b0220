"""What windows tell of a release, summed up. Pure."""

from dataclasses import dataclass, field

from streams.contract.window_metrics import ERRORS, Sums, WindowMetric, added, named, value_of
from streams.contract.window_report import ModelWindow, WindowReport

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
    by_labels: bool = False
    sums: Sums = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        """The metric that windows tell; None without a judged event."""
        return value_of(self.metric, self.sums)

    @property
    def lower_is_better(self) -> bool:
        return self.metric in ERRORS

    @property
    def called(self) -> str:
        return named(self.metric, by_labels=self.by_labels)

    def add(self, report: WindowReport, release: str, part: ModelWindow) -> None:
        if report.metric != self.metric:  # another task file: what was before does not add up
            self.metric, self.sums = report.metric, {}
        self.by_labels = not report.teacher_model
        self.sums = added((self.sums, report.sums(release)))
        self.windows += 1
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(part, name))
