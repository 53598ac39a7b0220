"""Accuracy of two versions on the same rows, and whether a difference is chance. Pure.

Only differences count: rows that the candidate gains (right where the served version is wrong) and
rows that it loses. McNemar's exact test (McNemar 1947) gives the probability of so many if both
were equally good: gained and lost rows are then coin tosses.

Rows are correlated: a person's period of sitting is gained or lost as a whole, and a cohort may
have only a few of them. For losses the test therefore counts clusters (devices or periods) instead
of rows: cluster i counts by d_i, its gained minus lost rows, divided by sum d_i^2 / sum |d_i|. This
is the cluster size if all are equal, and 1 if each row is a cluster.
"""

import math
from dataclasses import astuple, dataclass

EXACT = 1000  # differing rows; for more, the normal approximation is within 0.001


@dataclass(frozen=True)
class Paired:
    """`n` rows answered by both versions; `base` of them right by the served version. For the rows
    of a class, `base_false` and `false` are other rows that each version predicts as this class.
    For clusters of correlated rows, `down` is the sum of (lost - gained) over losing clusters and
    `squares` the sum of (gained - lost)^2 over all; both are 0 if each row is its own cluster."""

    n: int = 0
    base: int = 0
    gained: int = 0
    lost: int = 0
    base_false: int = 0
    false: int = 0
    down: int = 0
    squares: int = 0

    @property
    def candidate(self) -> int:
        return self.base + self.gained - self.lost

    @property
    def before(self) -> float:
        """The share of right rows by the served version."""
        return self.base / self.n if self.n else 0.0

    @property
    def after(self) -> float:
        return self.candidate / self.n if self.n else 0.0

    @property
    def gain(self) -> float:
        return (self.gained - self.lost) / self.n if self.n else 0.0

    @property
    def f1(self) -> tuple[float, float]:
        """The F1 scores of the served version and of the candidate."""
        found = ((self.base, self.base_false), (self.candidate, self.false))
        base, new = (2 * right / max(self.n + right + wrong, 1) for right, wrong in found)
        return base, new

    @property
    def recognizes_better(self) -> bool:
        """Whether F1 rises. A version that over-predicts a class finds nearly all of its rows; a
        candidate that finds fewer with a better F1 is not worse."""
        base, new = self.f1
        return new >= base

    @property
    def counts(self) -> str:
        return f"{self.gained} segments better, {self.lost} worse"

    @property
    def chance_of_gain(self) -> float:
        """The probability of so many gained rows by chance."""
        return chance(self.gained, self.lost)

    @property
    def chance_of_loss(self) -> float:
        """The probability of so many lost clusters by chance: p of McNemar's test for clusters."""
        if not self.squares:
            return chance(self.lost, self.gained)
        up = self.gained - self.lost + self.down
        alike = self.squares / (up + self.down)
        return chance(round(self.down / alike), round(up / alike))

    def __add__(self, other: "Paired") -> "Paired":
        return Paired(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def chance(many: int, few: int) -> float:
    """Return the probability that a fair coin shows heads `many` times or more in many + few
    tosses."""
    tosses = many + few
    if tosses > EXACT:
        return 0.5 * math.erfc((many - few - 1) / math.sqrt(2 * tosses))
    return sum(math.comb(tosses, heads) for heads in range(many, tosses + 1)) / (1 << tosses)
