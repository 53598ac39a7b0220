"""Coordinate-wise median and trimmed mean (Yin et al. 2018, arXiv:1803.01498), with Flower's
arithmetic; the number of samples that a device claims has no say.

The trimmed mean leaves the floor(share * n) highest and as many lowest values of each coordinate
out, so it bears that many bad devices of n. Under 1 / share updates it would leave out none.
"""

import math
from collections.abc import Sequence

import numpy as np
from flwr.serverapp.strategy import FedTrimmedAvg

from federation.aggregator import Memoryless, Move
from federation.strategies import flower

ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996: 29 are to be cut


class Median(Memoryless):
    name = "median"
    least = 3  # of two values the median is the mean

    def step(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return flower.median(moves)

    def statistics(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return flower.median(moves)


class TrimmedMean(Memoryless):
    name = "trimmed-mean"

    def __init__(self, share: float) -> None:
        self._share = share
        self.least = math.ceil(1 / share - ROUNDING)

    def step(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        cut = math.floor(self._share * len(moves) + ROUNDING)
        # Flower rounds beta * n down: half a device more keeps it from rounding to one too few.
        return flower.aggregated(FedTrimmedAvg(beta=_beta(cut, len(moves))), moves)

    def statistics(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return flower.median(moves)


def _beta(cut: int, count: int) -> float:
    return min((cut + 0.5) / count, 0.5 - ROUNDING)
