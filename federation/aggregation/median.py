"""Coordinate-wise median and trimmed mean (Yin et al. 2018, arXiv:1803.01498).

The number of samples that a device claims has no influence. The trimmed mean leaves out the
floor(n / 5) highest and as many lowest values of each coordinate, so it tolerates that many bad
devices of n. With fewer than five updates it would leave out none.
"""

from collections.abc import Sequence

import numpy as np

from federation.aggregation.aggregator import Move, StatelessRule

PART = 5  # a fifth is cut off at each end


def median(moves: Sequence[Move]) -> dict[str, np.ndarray]:
    """The median of each coordinate, float64."""
    return {
        name: np.median(np.stack([move.tensors[name] for move in moves]), axis=0)
        for name in moves[0].tensors
    }


class Median(StatelessRule):
    name = "median"
    least = 3  # of two values the median is the mean

    def step(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return median(moves)

    def statistics(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return median(moves)


class TrimmedMean(StatelessRule):
    name = "trimmed-mean"

    least = PART

    def step(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        cut = len(moves) // PART
        kept = slice(cut, len(moves) - cut)
        return {
            name: np.sort(np.stack([move.tensors[name] for move in moves]), axis=0)[kept].mean(0)
            for name in moves[0].tensors
        }

    def statistics(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return median(moves)
