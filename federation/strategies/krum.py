"""Krum and Multi-Krum (Blanchard et al. 2017, arXiv:1703.02757), with Flower's arithmetic.

With n updates, f of which may be bad, an update's score is the sum of its squared distances to the
n - f - 2 nearest others. Krum takes the update with the lowest score, Multi-Krum the mean of the
n - f - 2 lowest; the number of samples that a device claims has no say. Both need 2 f + 3 updates.
"""

from collections.abc import Sequence

import numpy as np
from flwr.serverapp.strategy import MultiKrum

from federation.aggregator import Memoryless, Move
from federation.strategies import flower


class Krum(Memoryless):
    """`byzantine` is f; `many` takes the mean of the best instead of the one best."""

    by_tensor = False

    def __init__(self, byzantine: int, many: bool = False) -> None:
        self.name = "multi-krum" if many else "krum"
        self.least = 2 * byzantine + 3
        self._byzantine, self._many = byzantine, many

    def step(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        near = max(1, len(moves) - self._byzantine - 2)
        krum = MultiKrum(
            num_malicious_nodes=self._byzantine, num_nodes_to_select=near if self._many else 1
        )
        return flower.aggregated(krum, [move._replace(samples=1) for move in moves])

    def statistics(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return flower.median(moves)
