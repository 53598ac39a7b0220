"""FedAdam and FedYogi: the weighted mean of the differences is the gradient of an optimiser on the
server (Reddi et al. 2021, arXiv:2003.00295, algorithm 2), with Flower's arithmetic.

    m  <- beta1 m + (1 - beta1) d                         d: the weighted mean of the differences
    v  <- beta2 v + (1 - beta2) d^2                       FedAdam
    v  <- v - (1 - beta2) d^2 sign(v - d^2)               FedYogi
    x  <- x + rate m / (sqrt(v) + tau)

m and v begin at zero. FedAdam's rate is corrected for that as in Kingma & Ba (arXiv:1412.6980),
rate sqrt(1 - beta2^t) / (1 - beta1^t) with t = 1 in the first round; the paper has no correction,
and FedYogi none here either. Flower raises to the power of its round + 1, which in its own first
round, 1, is one too many: it is told t - 1. t counts the rounds that had an update.

The state is `<strategy>/t`, `<strategy>/m/<tensor>` and `<strategy>/v/<tensor>`, in float64.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from flwr.serverapp.strategy import FedAdam as FlowerFedAdam
from flwr.serverapp.strategy import FedYogi as FlowerFedYogi

from federation.aggregator import Move, State
from federation.strategies import flower
from streams.contract.task import Aggregation


class FedOpt:
    """What FedAdam and FedYogi share: all but Flower's class."""

    least = 1
    by_tensor = False  # it counts its steps

    def __init__(
        self, name: str, kind: Callable[..., FlowerFedAdam | FlowerFedYogi], options: Aggregation
    ) -> None:
        self.name = name
        beta_1, beta_2 = options.betas
        self._rounds = 0
        self._optimiser = kind(
            eta=options.learning_rate, beta_1=beta_1, beta_2=beta_2, tau=options.tau
        )

    def step(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        self._check(moves[0])
        step = flower.optimised(self._optimiser, moves, self._rounds)
        self._rounds += 1
        return step

    def statistics(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return flower.weighted_mean(moves)

    def state(self) -> State:
        if not self._rounds:
            return {}
        found: State = {f"{self.name}/t": np.array(self._rounds, np.int64)}
        for letter, tensors in (("m", self._optimiser.m_t), ("v", self._optimiser.v_t)):
            for name, value in (tensors or {}).items():
                found[f"{self.name}/{letter}/{name}"] = np.array(value, np.float64)
        return found

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from `state`; ValueError where it is not one of this strategy."""
        parts: dict[str, dict[str, np.ndarray]] = {"m": {}, "v": {}}
        rounds = 0
        for key, value in state.items():
            name, _, rest = key.partition("/")
            letter, _, tensor = rest.partition("/")
            if name != self.name or (letter not in parts and rest != "t"):
                raise ValueError(f"{self.name} has no {key!r}: it is another strategy's state")
            if rest == "t":
                rounds = int(value)
            else:
                parts[letter][tensor] = np.array(value, np.float64)
        if parts["m"].keys() != parts["v"].keys() or bool(parts["m"]) != (rounds > 0):
            raise ValueError(f"the state of {self.name} is not whole")
        self._rounds = rounds
        self._optimiser.m_t = parts["m"] or None
        self._optimiser.v_t = parts["v"] or None

    def _check(self, move: Move) -> None:
        have = {name: np.shape(value) for name, value in (self._optimiser.m_t or {}).items()}
        if have and have != {name: value.shape for name, value in move.tensors.items()}:
            raise ValueError(f"the state of {self.name} is of another model")


def fedadam(options: Aggregation) -> FedOpt:
    return FedOpt("fedadam", FlowerFedAdam, options)


def fedyogi(options: Aggregation) -> FedOpt:
    return FedOpt("fedyogi", FlowerFedYogi, options)
