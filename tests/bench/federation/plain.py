"""FedAvg as Flower has it, with nothing before it: whole weights as they came, in float32, weighed
by whatever number of samples a device claims."""

from collections.abc import Iterator, Sequence

import numpy as np
from flwr.serverapp.strategy import FedAvg

from federation.admission.update import Update
from federation.aggregation.aggregator import Move
from tests.bench.federation.loop import Answering
from tests.bench.federation.trainees import Tensors
from tests.flower_arithmetic import aggregated


class RunEnds(Exception):
    """Flower raised, and would have ended the run."""


def plain_rounds(
    names: Sequence[str], weights: Tensors, count: int, answer: Answering
) -> Iterator[Tensors]:
    """The weights after each round."""
    for number in range(1, count + 1):
        weights = _average([answer(name, weights, number) for name in names], weights)
        yield weights


def _average(updates: Sequence[Update], base: Tensors) -> Tensors:
    moves = [Move(dict(update.weights), update.samples) for update in updates]
    try:
        found = aggregated(FedAvg(), moves)
    except Exception as exc:  # whichever kind it is, Flower's ServerApp does not catch it
        raise RunEnds(f"{type(exc).__name__}: {exc}".splitlines()[0][:200]) from exc
    return {name: np.asarray(found[name]).astype(old.dtype) for name, old in base.items()}
