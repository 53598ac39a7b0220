"""The seam to Flower's strategies: their arithmetic, on what we made from admitted updates alone.

A strategy of Flower's sums in the precision of the tensors it is given, turns integers into floats
and weighs by the number of samples in the message. So each message is made here, of float64
differences and a number that we set.
"""

from collections.abc import Sequence

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    Message,
    MessageType,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedYogi

from federation.aggregator import Move

SAMPLES = "num-examples"  # Flower's default of `weighted_by_key`


def aggregated(strategy: FedAvg, moves: Sequence[Move], number: int = 1) -> dict[str, np.ndarray]:
    """What `strategy` makes of the moves; `number` is the round that it is told."""
    arrays, _ = strategy.aggregate_train(number, [_reply(move) for move in moves])
    if arrays is None:
        raise ValueError("nothing to aggregate")
    return {str(name): np.asarray(array.numpy()) for name, array in arrays.items()}


def weighted_mean(moves: Sequence[Move]) -> dict[str, np.ndarray]:
    return aggregated(FedAvg(), moves)


def median(moves: Sequence[Move]) -> dict[str, np.ndarray]:
    """The median of each coordinate; samples have no say."""
    return aggregated(FedMedian(), moves)


def optimised(
    strategy: FedAdam | FedYogi, moves: Sequence[Move], number: int
) -> dict[str, np.ndarray]:
    """The step of a server optimiser. As the moves are differences, its current weights are zero
    and what it returns is the step."""
    strategy.current_arrays = {n: np.zeros_like(t) for n, t in moves[0].tensors.items()}
    return aggregated(strategy, moves, number)


def _reply(move: Move) -> Message:
    """As a SuperNode's reply. Its metadata, of which no strategy reads anything, are given: made by
    Flower they would need the run's process around them."""
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(value) for name, value in move.tensors.items()}),
            "metrics": MetricRecord({SAMPLES: move.samples}),
        }
    )
    about = Metadata(0, "", 0, 0, "", "", 0.0, 0.0, MessageType.TRAIN)
    reply: Message = Message(content=content, metadata=about)  # type: ignore[call-overload]
    return reply
