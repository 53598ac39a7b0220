"""Two versions on the same rows, and whether a difference is chance. Pure.

**Accuracy.** Only differences count: rows that the candidate gains (right where the served version
is wrong) and rows that it loses. McNemar's exact test (McNemar 1947) gives the probability of so
many if both were equally good: gained and lost rows are then coin tosses.

Rows are correlated: a person's period of sitting is gained or lost as a whole, and a cohort may
have only a few of them. For losses the test therefore counts clusters (devices or periods) instead
of rows: cluster i counts by d_i, its gained minus lost rows, divided by sum d_i^2 / sum |d_i|. This
is the cluster size if all are equal, and 1 if each row is a cluster.

**Any metric.** A row is not right or wrong by the area under a curve or a mean error: the metric is
one number of many rows. The test swaps both versions' outputs in whole units at random: if they
were equally good, the difference would be as large or larger as often as not (a paired permutation
test, Fisher 1935). Units are rows for a gain, and clusters of correlated rows for a loss.

Of devices only figures are known. Where the metric is of the classes that are answered (macro F1,
balanced accuracy) their counts by class add up, and gained and lost rows tell chance. Of any other
metric whole devices are the units; n of them give at least 2 ** -n, so fewer than five prove
nothing.

The gain is of `streams.contract.task.metrics.gain`, so that 0.01 is a point of a score or a
hundredth of an error.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from streams.contract.task import Metric, Task
from streams.contract.task.metrics import gain, value

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


# --- any metric -----------------------------------------------------------------------------------

SWAPS = 499
ALL_SWAPS = 12  # units; of fewer every way to swap is looked at
PROVEN = 0.05  # the chance below which a gain is none
LEAST = math.ceil(-math.log2(PROVEN))  # units, all of which gain
NEAR = 1e-12
OUTLIER = 10.0  # times the median: as a device's value counts at most in a mean


@dataclass(frozen=True)
class Valued:
    """`n` rows in `units` that can be swapped, called `parts`; `before` and `after`: the metric of
    the served version and of the candidate; the chances are of a gain, or a loss, as large as this
    one. `said`: what a gain was told from, if not from the units."""

    n: int = 0
    units: int = 0
    before: float = 0.0
    after: float = 0.0
    gain: float = 0.0
    chance_of_gain: float = 1.0
    chance_of_loss: float = 1.0
    parts: str = "segments"
    said: str = ""

    recognizes_better = False

    @property
    def counts(self) -> str:
        few = f", fewer than {LEAST} prove no gain" if self.units < LEAST else ""
        return self.said or f"{self.units} {self.parts}{few}, p {self.chance_of_gain:.2f}"


def compare(
    task: Task,
    metric: Metric,
    outputs: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    clusters: np.ndarray,
) -> Valued:
    """Compare outputs (n, outputs) of the served version and of the candidate for labels (n,
    label_size); clusters: (n,) numbers. Without rows, or where the metric is not defined for these
    labels, nothing is compared."""
    base, new = outputs
    before, after = (value(task, metric, each, labels) for each in outputs)
    if not np.isfinite([before, after]).all():
        return Valued()
    found = gain(metric, before, after)

    def drawn(units: np.ndarray) -> list[float]:
        names, unit = np.unique(units, return_inverse=True)
        gains = []
        for swap in _swaps(len(names)):
            rows = swap[unit][:, None]
            one = value(task, metric, np.where(rows, new, base), labels)
            other = value(task, metric, np.where(rows, base, new), labels)
            gains.append(gain(metric, one, other))
        return gains

    n = len(labels)
    by_row, by_cluster = drawn(np.arange(n)), drawn(clusters)
    return Valued(n, n, before, after, found, _at_least(by_row, found), _at_most(by_cluster, found))


def pool(metric: Metric, devices: Sequence[tuple[int, float, float]]) -> Valued:
    """Combine what devices report: rows, and the metric of both versions on them. A device counts
    by its rows; however large a value is, its gain counts 1 at most."""
    if not devices:
        return Valued()
    rows = np.array([n for n, _, _ in devices], np.float64)
    gains = np.array([gain(metric, before, after) for _, before, after in devices])
    weighted = rows * gains / rows.sum()
    found = float(weighted.sum())
    drawn = _drawn(weighted)
    before, after = (mean(rows, np.array([each[at] for each in devices])) for at in (1, 2))
    return Valued(
        int(rows.sum()), len(devices), before, after, found,
        _at_least(drawn, found), _at_most(drawn, found), "devices",
    )  # fmt: skip


def chance_by_units(gains: np.ndarray) -> float:
    """Return the probability of a sum of gains (units,) as large by chance, if both versions are
    exchanged on whole units; 1 without any."""
    return _at_least(_drawn(gains), float(gains.sum())) if len(gains) else 1.0


def _drawn(gains: np.ndarray) -> list[float]:
    return [float(np.where(swap, -gains, gains).sum()) for swap in _swaps(len(gains))]


def pool_classes(metric: Metric, devices: Sequence[Sequence[Paired]], rows: Paired) -> Valued:
    """Combine devices' counts by class for a metric of the classes that are answered; `rows`: all
    of them together."""
    counts = np.array(
        [
            [(c.n, c.base, c.candidate, c.base_false, c.false) for c in classes]
            for classes in devices
        ],
        np.float64,
    )  # (devices, classes, 5)

    def gains(swap: np.ndarray) -> tuple[float, float]:
        swapped = np.where(swap[:, None, None], counts[:, :, [0, 2, 1, 4, 3]], counts).sum(axis=0)
        n, base, new, base_false, false = swapped.T
        return OF_CLASSES[metric.name](n, base, base_false), OF_CLASSES[metric.name](n, new, false)

    before, after = gains(np.zeros(len(devices), np.bool_))
    found = gain(metric, before, after)
    drawn = [gain(metric, *gains(swap)) for swap in _swaps(len(devices))]
    return Valued(
        rows.n, len(devices), before, after, found,
        rows.chance_of_gain, _at_most(drawn, found), "devices", rows.counts,
    )  # fmt: skip


def _recall(n: np.ndarray, right: np.ndarray, _false: np.ndarray) -> float:
    return float((right[n > 0] / n[n > 0]).mean()) if (n > 0).any() else 0.0


def _f1(n: np.ndarray, right: np.ndarray, false: np.ndarray) -> float:
    of = n + right + false
    return float((2 * right[of > 0] / of[of > 0]).mean()) if (of > 0).any() else 0.0


OF_CLASSES = {"balanced_accuracy": _recall, "macro_f1": _f1}


def mean(rows: np.ndarray, values: np.ndarray) -> float:
    """The mean weighted by rows, in which no value counts more than OUTLIER times the median."""
    most = OUTLIER * float(np.median(np.abs(values)))
    return float(np.average(np.clip(values, -most, most), weights=rows))


def _swaps(units: int) -> np.ndarray:
    """(ways, units) bool: which units are swapped; all ways of few units, else some drawn ones."""
    if units <= ALL_SWAPS:
        return np.asarray((np.arange(1 << units)[:, None] >> np.arange(units)) & 1, np.bool_)
    drawn = np.random.default_rng(0).integers(0, 2, (SWAPS, units)).astype(np.bool_)
    return np.concatenate([np.zeros((1, units), np.bool_), drawn])  # as they are is one way


def _at_least(drawn: Sequence[float], found: float) -> float:
    return float((np.array(drawn) >= found - NEAR).mean())


def _at_most(drawn: Sequence[float], found: float) -> float:
    return float((np.array(drawn) <= found + NEAR).mean())
