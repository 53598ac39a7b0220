"""Quantiles of times, with 95 % intervals. Pure.

Slow answers come in bursts, so a stretch of time is what counts as independent: the intervals are
those of a bootstrap of blocks of a second.
"""

from dataclasses import dataclass, field

import numpy as np

from tests.bench.report import Figure

BLOCK_S = 1.0
RESAMPLES = 200


@dataclass
class Times:
    """When each was measured, in seconds, and how long it took, in any unit: (n,) each."""

    at: np.ndarray
    took: np.ndarray
    _drawn: dict[float, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.took)

    def quantile(self, share: float) -> Figure:
        return _figure(float(np.quantile(self.took, share)), self._draws(share), len(self))

    def ratio(self, other: "Times", share: float) -> Figure:
        """Return this quantile over the same of others that were measured apart."""
        found = np.quantile(self.took, share) / np.quantile(other.took, share)
        draws = self._draws(share) / other._draws(share)[::-1]
        return _figure(float(found), draws, len(self))

    def _draws(self, share: float) -> np.ndarray:
        """(RESAMPLES,) the quantile of blocks that are drawn by lot, as many as there are."""
        if share not in self._drawn:
            blocks = self._blocks()
            dice = np.random.default_rng(len(self))
            self._drawn[share] = np.array([
                np.quantile(np.concatenate([blocks[i] for i in drawn]), share)
                for drawn in dice.integers(0, len(blocks), (RESAMPLES, len(blocks)))
            ])  # fmt: skip
        return self._drawn[share]

    def _blocks(self) -> list[np.ndarray]:
        order = np.argsort(self.at, kind="stable")
        number = ((self.at[order] - self.at[order[0]]) // BLOCK_S).astype(np.int64)
        return np.split(self.took[order], np.flatnonzero(np.diff(number)) + 1)


def _figure(found: float, draws: np.ndarray, count: int) -> Figure:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Figure(found, float(low), float(high), count)
