"""Lines through measured points: slopes with the spread of the runs, and how far off they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.bench.report import Figure

HOLDS = 0.15  # of what was measured: a fit that is further off at any point does not hold


@dataclass(frozen=True)
class Fit:
    """`slopes` belong to the columns of the points, `intercept` is what is spent without any of
    them (0 where none was fitted). `worst` is the largest distance of the fit from a measured
    median, as a share of that; `at` is the point where it is."""

    slopes: tuple[Figure, ...]
    intercept: Figure
    worst: float
    at: tuple[float, ...]

    @property
    def holds(self) -> bool:
        return self.worst <= HOLDS

    def __call__(self, *x: float) -> float:
        found = self.intercept.median
        return found + sum(slope.median * one for slope, one in zip(self.slopes, x, strict=True))

    @property
    def verdict(self) -> str:
        """How well it holds, as a cell of a table."""
        if self.holds:
            return f"within {self.worst:.0%}"
        where = ", ".join(f"{one:,.0f}" for one in self.at)
        return f"**off by {self.worst:.0%}** at {where}"


def fit(points: Sequence[tuple[Sequence[float], Sequence[float]]], *, origin: bool = False) -> Fit:
    """Fit values linear in x; `points` have x and what each run measured there.

    Each run is fitted by itself, so slopes have the runs' spread; where a point has fewer runs its
    last one stands for the missing ones. Points weigh by the inverse of their value, so that small
    ones count as much as large ones. `origin`: the line goes through zero.
    """
    xs = np.array([x for x, _ in points], float)  # (points, columns)
    turns = max(len(values) for _, values in points)
    found = []
    for turn in range(turns):
        y = np.array([values[min(turn, len(values) - 1)] for _, values in points], float)
        found.append(_solve(xs, y, origin))
    solutions = np.array(found)  # (turns, 1 + columns)
    made = Fit(
        tuple(Figure.of(column.tolist()) for column in solutions.T[1:]),
        Figure.of(solutions.T[0].tolist()),
        0.0,
        (),
    )
    medians = [Figure.of(values).median for _, values in points]
    off = [
        abs(made(*x) - median) / max(abs(median), 1e-12)
        for (x, _), median in zip(points, medians, strict=True)
    ]
    worst = int(np.argmax(off))
    return Fit(made.slopes, made.intercept, float(off[worst]), tuple(map(float, points[worst][0])))


def _solve(xs: np.ndarray, y: np.ndarray, origin: bool) -> np.ndarray:
    """Least squares of relative distances; no cost is negative: one that would be is 0."""
    weights = 1.0 / np.maximum(np.abs(y), 1e-12)
    columns = np.column_stack([np.zeros(len(y)) if origin else np.ones(len(y)), xs])
    left = [i for i in range(columns.shape[1]) if not (origin and i == 0)]
    while True:
        scale = np.abs(columns[:, left]).max(axis=0)
        scale[scale == 0] = 1.0
        solved, *_ = np.linalg.lstsq(
            columns[:, left] / scale * weights[:, None], y * weights, rcond=None
        )
        solved = solved / scale
        negative = [i for i, value in zip(left, solved, strict=True) if value < 0]
        if not negative:
            found = np.zeros(columns.shape[1])
            found[left] = solved
            return found
        left = [i for i in left if i not in negative]
