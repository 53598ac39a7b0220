"""FedAvg: the mean weighted by samples (McMahan et al. 2017, arXiv:1602.05629).

FedProx (Li et al. 2020, arXiv:1812.06127) is the same on the server; its proximal term is in the
devices' loss, see `Training.proximal` and learning.fit.

FedBuff (Nguyen et al. 2022, arXiv:2106.06639) is the same of a buffer's updates, each shortened by
how late it is; the buffer is `federation.collecting`'s. In the paper all updates weigh the same.
"""

from collections.abc import Sequence

import numpy as np

from federation.aggregator import Memoryless, Move
from federation.strategies import flower


class FedAvg(Memoryless):
    least = 1

    def __init__(self, name: str = "fedavg") -> None:
        self.name = name

    def step(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return flower.weighted_mean(moves)

    def statistics(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return flower.weighted_mean(moves)
