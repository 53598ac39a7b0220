"""Any metric of two versions on the same rows, and whether a difference is chance. Pure.

A row is not right or wrong by the area under a curve or a mean error: the metric is one number of
many rows. The test swaps both versions' outputs in whole units at random: if they were equally
good, the difference would be as large or larger as often as not (a paired permutation test, Fisher
1935). Units are clusters of correlated rows: spells of one class, blocks of rows of targets, and on
devices whole devices. So few units cannot tell: n of them give at least 2 ** -n.

The gain is of `streams.contract.task.metrics.gain`, so that 0.01 is a point of a score or a
hundredth of an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streams.contract.task import Metric, Task
from streams.contract.task.metrics import gain, value

SWAPS = 999
ALL_SWAPS = 12  # units; of fewer every way to swap is looked at
OUTLIER = 10.0  # times the median: as a device's value counts at most in a mean


@dataclass(frozen=True)
class Valued:
    """`n` rows in `units` that can be swapped; `before` and `after`: the metric of the served
    version and of the candidate; the chances are of a gain, or a loss, as large as this one."""

    n: int = 0
    units: int = 0
    before: float = 0.0
    after: float = 0.0
    gain: float = 0.0
    chance_of_gain: float = 1.0
    chance_of_loss: float = 1.0

    recognizes_better = False

    @property
    def counts(self) -> str:
        least = 2.0**-self.units
        few = "" if least <= 0.05 else ", too few to tell"
        return f"{self.units} independent part{'s' * (self.units != 1)}{few}"


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
    names, unit = np.unique(clusters, return_inverse=True)
    found = gain(metric, before, after)
    drawn = []
    for swap in _swaps(len(names)):
        rows = swap[unit][:, None]
        one, other = (
            value(task, metric, np.where(rows, a, b), labels) for a, b in ((new, base), (base, new))
        )
        drawn.append(gain(metric, one, other))
    return Valued(len(labels), len(names), before, after, found, *_chances(found, drawn))


def pool(metric: Metric, devices: Sequence[tuple[int, float, float]]) -> Valued:
    """Combine what devices report: rows, and the metric of both versions on them. A device counts
    by its rows; however large a value is, its gain counts 1 at most."""
    if not devices:
        return Valued()
    rows = np.array([n for n, _, _ in devices], np.float64)
    gains = np.array([gain(metric, before, after) for _, before, after in devices])
    weighted = rows * gains / rows.sum()
    found = float(weighted.sum())
    drawn = [float(np.where(swap, -weighted, weighted).sum()) for swap in _swaps(len(devices))]
    before, after = (mean(rows, np.array([each[at] for each in devices])) for at in (1, 2))
    return Valued(int(rows.sum()), len(devices), before, after, found, *_chances(found, drawn))


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


def _chances(found: float, drawn: Sequence[float]) -> tuple[float, float]:
    all_of_them = np.array(drawn)
    near = 1e-12
    return float((all_of_them >= found - near).mean()), float((all_of_them <= found + near).mean())
