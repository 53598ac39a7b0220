"""Flower's own strategies on updates of ours: what the algorithms in numpy are compared with.

A strategy of Flower's sums in the precision of the tensors that it gets, turns integers into floats
and weighs by the number of samples in the message, so each message is made here of float64
differences and a number that we set.
"""

from collections.abc import Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedYogi

from streams.contract.task.extensions import Move

SAMPLES = "num-examples"  # Flower's default of `weighted_by_key`


def aggregated(strategy: FedAvg, moves: Sequence[Move], number: int = 1) -> dict[str, np.ndarray]:
    """Return what `strategy` makes of the moves in round `number`."""
    arrays, _ = strategy.aggregate_train(number, [reply(move) for move in moves])
    if arrays is None:
        raise ValueError("nothing to aggregate")
    return {str(name): np.asarray(array.numpy()) for name, array in arrays.items()}


def optimised(
    strategy: FedAdam | FedYogi, moves: Sequence[Move], number: int
) -> dict[str, np.ndarray]:
    """The step of a server optimiser. As the moves are differences, its current weights are zero
    and what it returns is the step."""
    strategy.current_arrays = {n: np.zeros_like(t) for n, t in moves[0].tensors.items()}
    return aggregated(strategy, moves, number)


def reply(move: Move) -> Message:
    """As a SuperNode's reply. No strategy reads its metadata; made by Flower they would need the
    run's process around them."""
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(value) for name, value in move.tensors.items()}),
            "metrics": MetricRecord({SAMPLES: move.samples}),
        }
    )
    about = Metadata(0, "", 0, 0, "", "", 0.0, 0.0, MessageType.TRAIN)
    made: Message = Message(content=content, metadata=about)  # type: ignore[call-overload]
    return made
