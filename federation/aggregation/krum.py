"""Krum and Multi-Krum (Blanchard et al. 2017, arXiv:1703.02757).

With n updates, f of which may be bad, an update's score is the sum of its squared distances to the
n - f - 2 nearest others. Krum takes the update with the lowest score, Multi-Krum the mean of the
n - f - 2 lowest; the number of samples that a device claims has no influence. f is the most that
n >= 2 f + 3 allows, so both need five updates.
"""

from collections.abc import Sequence

import numpy as np

from federation.aggregation.aggregator import Move, StatelessRule
from federation.aggregation.mean import weighted_mean
from federation.aggregation.median import median


class Krum(StatelessRule):
    """`many` selects Multi-Krum."""

    by_tensor = False
    least = 5

    def __init__(self, *, many: bool = False) -> None:
        self.name = "multi-krum" if many else "krum"
        self._many = many

    def step(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        bad = (len(moves) - 3) // 2
        near = max(1, len(moves) - bad - 2)
        chosen = np.argsort(scores(moves, near), kind="stable")[: near if self._many else 1]
        return weighted_mean([moves[i]._replace(samples=1) for i in chosen])

    def statistics(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return median(moves)


def scores(moves: Sequence[Move], near: int) -> np.ndarray:
    """The summed squared distances of each update to its `near` nearest others, (updates,)."""
    flat = [np.concatenate([t.ravel() for t in move.tensors.values()]) for move in moves]
    distances = np.zeros((len(flat), len(flat)))
    for i, one in enumerate(flat):
        for j in range(i):
            distances[i, j] = distances[j, i] = ((one - flat[j]) ** 2).sum()
    others = np.sort(distances, axis=1)[:, 1:]  # without the distance to itself, which is 0
    return np.asarray(others[:, :near].sum(axis=1))
