"""FedAvg: the mean weighted by samples (McMahan et al. 2017, arXiv:1602.05629).

FedProx (Li et al. 2020, arXiv:1812.06127) is the same on the server; its proximal term is in the
devices' loss (`Training.proximal`). So is SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378);
devices correct their gradients by what they remember (`edge_client.training.scaffold`).

FedBuff (Nguyen et al. 2022, arXiv:2106.06639) is the mean of a buffer's updates, each scaled
down by its staleness; `federation.rounds.collector` keeps the buffer. The paper weighs all updates
equally.
"""

from collections.abc import Sequence

import numpy as np

from federation.aggregation.aggregator import Move, StatelessRule


def weighted_mean(moves: Sequence[Move]) -> dict[str, np.ndarray]:
    """The mean of each tensor, weighted by samples, float64."""
    samples = np.array([move.samples for move in moves], np.float64)
    return {
        name: np.tensordot(samples, np.stack([move.tensors[name] for move in moves]), 1)
        / samples.sum()
        for name in moves[0].tensors
    }


SCAFFOLD = "scaffold"


class FedAvg(StatelessRule):
    least = 1

    def __init__(self, name: str = "fedavg") -> None:
        self.name = name

    def step(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return weighted_mean(moves)

    def statistics(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return weighted_mean(moves)
