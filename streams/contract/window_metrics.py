"""What windows tell of a task's metric: sums over events that add up, and their value. Pure.

Windows compare a device's answers with the teacher's and with the true labels. A share is by one of
them, never by both (`Judgement`). Where `Task.metric` is no sum over events they tell the
nearest that is one:

    Task.metric                                              windows
    accuracy, a Metric of one's own for classes              accuracy: the share of right answers
    balanced_accuracy, macro_f1                              balanced_accuracy: the mean over the
                                                             reference's classes of that share
    auc, average_precision                                   brier: half the squared distance
                                                             between the answer's softmax and the
                                                             reference's (Brier 1950), 0 to 1; no
                                                             threshold decides it
    within                                                   within: the share within the tolerance
    mae                                                      mae
    rmse, r2, a Metric of one's own for targets              rmse

Of a share the sum is the number of right answers, of an error that of absolute or squared errors,
or distances.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

RowMetric = Literal["accuracy", "within", "mae", "rmse"]  # what a mean over rows tells
WindowMetric = Literal["accuracy", "balanced_accuracy", "brier", "within", "mae", "rmse"]
Sums = Mapping[str, tuple[float, float]]  # by the true, or the teacher's class: events, right
ERRORS = ("brier", "mae", "rmse")  # the smaller the better
BALANCED = "balanced_accuracy"
ALL = ""  # the class of a metric that does not tell them apart
ALMOST_ALL = 0.95  # share of a window's events that one version must have answered
LABELLED = 0.5  # of the events that a teacher has judged: then their true labels judge, not it

NAMES = {
    "accuracy": "agreement with {}",
    "balanced_accuracy": "balanced agreement with {}",
    "brier": "Brier distance from {}",
    "within": "share within the tolerance of {}",
    "mae": "MAE from {}",
    "rmse": "RMSE from {}",
}


JUDGES = {False: "the teacher", True: "true labels"}


def named(metric: WindowMetric, *, by_labels: bool = False) -> str:
    """Return the metric's name for a person: `RMSE from the teacher`."""
    return NAMES[metric].format(JUDGES[by_labels])


def named_of(metric: WindowMetric, judges: Collection[bool]) -> str:
    """Return the metric's name for several values; `judges`: whether true labels judge each."""
    return NAMES[metric].format(" or ".join(JUDGES[by] for by in sorted(set(judges))))


def value_of(metric: WindowMetric, sums: Sums) -> float | None:
    """Return the metric's value; None without an event."""
    shares = [(n, right / n) for n, right in sums.values() if n > 0]
    if not shares:
        return None
    if metric == BALANCED:
        return sum(share for _, share in shares) / len(shares)
    mean = sum(n * share for n, share in shares) / sum(n for n, _ in shares)
    return math.sqrt(max(mean, 0.0)) if metric == "rmse" else mean


def added(parts: Iterable[Sums]) -> dict[str, tuple[float, float]]:
    """Return the sums of several windows."""
    total: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, (events, right) in part.items():
            before = total.get(name, (0, 0))
            total[name] = before[0] + events, before[1] + right
    return total


def events_in(sums: Sums) -> float:
    """Return the number of events."""
    return sum(events for events, _ in sums.values())


def is_by_labels(compared: float, labelled: float) -> bool:
    """Return whether the true labels judge: of as many events as LABELLED says, or of any where no
    teacher was asked."""
    return labelled > 0 and labelled >= LABELLED * compared


@dataclass(frozen=True)
class Judgement:
    """What one version's events come to by the teacher's answers, and by the true labels. It adds
    up over windows and their revisions; which of both counts is decided on the sum."""

    taught: Sums = field(default_factory=dict)
    true: Sums = field(default_factory=dict)

    def __add__(self, other: "Judgement") -> "Judgement":
        return Judgement(added((self.taught, other.taught)), added((self.true, other.true)))

    def __neg__(self) -> "Judgement":
        taught, true = (
            {name: (-events, -right) for name, (events, right) in part.items()}
            for part in (self.taught, self.true)
        )
        return Judgement(taught, true)

    def __bool__(self) -> bool:
        return bool(self.taught or self.true)

    @property
    def by_labels(self) -> bool:
        return is_by_labels(events_in(self.taught), events_in(self.true))

    @property
    def sums(self) -> Sums:
        """What counts."""
        return self.true if self.by_labels else self.taught


def is_worse(metric: WindowMetric, value: float, limit: float, by: float = 0.0) -> bool:
    """Return whether `value` is worse than `limit` by more than `by`: of a share a difference, of
    an error a share of the limit."""
    return value > limit * (1 + by) if metric in ERRORS else value < limit - by


def is_better(metric: WindowMetric, value: float, limit: float, by: float = 0.0) -> bool:
    """Return whether `value` is at least as good as `limit` and `by` more."""
    return value <= limit * (1 - by) if metric in ERRORS else value >= limit + by


def digits(value: float) -> str:
    """Return a metric's value with three digits after the point, or three in all."""
    return f"{value:.3f}" if 0.1 <= abs(value) < 10 or not value else f"{value:.3g}"
