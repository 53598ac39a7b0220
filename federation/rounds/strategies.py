"""The strategies by name: see `streams.contract.task.STRATEGIES`.

FedAvg: the mean weighted by samples (McMahan et al. 2017, arXiv:1602.05629). FedProx (Li et al.
2020, arXiv:1812.06127) is the same on the server; its proximal term is in the devices' loss
(`Training.proximal`).

FedBuff (Nguyen et al. 2022, arXiv:2106.06639) is the mean of a buffer's updates, each scaled down
by its staleness; `federation.rounds.collector` keeps the buffer. The paper weighs all updates
equally.

Krum and Multi-Krum (Blanchard et al. 2017, arXiv:1703.02757).

With n updates, f of which may be bad, an update's score is the sum of its squared distances to the
n - f - 2 nearest others. Krum takes the update with the lowest score, Multi-Krum the mean of the
n - f - 2 lowest; the number of samples that a device claims has no influence. f is the most that
n >= 2 f + 3 allows, so both need five updates.

FedAdam and FedYogi (Reddi et al. 2021, arXiv:2003.00295, algorithm 2).

The weighted mean of the differences, d, is the gradient of an optimiser on the server:

    m  <- beta1 m + (1 - beta1) d
    v  <- beta2 v + (1 - beta2) d^2                       FedAdam
    v  <- v - (1 - beta2) d^2 sign(v - d^2)               FedYogi
    x  <- x + rate m / (sqrt(v) + tau)

m and v begin at zero. FedAdam's rate is corrected for that as in Kingma & Ba (arXiv:1412.6980),
rate sqrt(1 - beta2^t) / (1 - beta1^t), where t counts the rounds that had an update and is 1 in the
first. The paper has no correction, and FedYogi has none here.

The state is `<strategy>/t`, `<strategy>/m/<tensor>` and `<strategy>/v/<tensor>`, in float64.

Coordinate-wise median and trimmed mean (Yin et al. 2018, arXiv:1803.01498).

The number of samples that a device claims has no influence. The trimmed mean leaves out the
floor(n / 5) highest and as many lowest values of each coordinate, so it tolerates that many bad
devices of n. With fewer than five updates it would leave out none.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from federation.rounds.aggregator import Aggregator, State, StatelessRule
from streams.contract.errors import UsageError, line_of
from streams.contract.task.extensions import Move, Strategy, load_extension

PARTS = ("name", "least", "by_number", "is_mean", "step", "statistics", "state", "load")
PART = 5  # a fifth is cut off at each end


def weighted_mean(moves: Sequence[Move]) -> dict[str, np.ndarray]:
    """The mean of each tensor, weighted by samples, float64."""
    samples = np.array([move.samples for move in moves], np.float64)
    return {
        name: np.tensordot(samples, np.stack([move.tensors[name] for move in moves]), 1)
        / samples.sum()
        for name in moves[0].tensors
    }


class FedAvg(StatelessRule):
    least = 1
    is_mean = True

    def __init__(self, name: str = "fedavg") -> None:
        self.name = name

    def step(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return weighted_mean(moves)

    def statistics(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return weighted_mean(moves)


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


BETAS, TAU, RATE = (0.9, 0.99), 1e-3, 0.01  # the paper's


class ServerOptimizer:
    """FedAdam, or FedYogi with `yogi`."""

    least = 1
    by_number = False  # it counts its steps
    is_mean = False

    def __init__(self, *, yogi: bool = False) -> None:
        self.name, self._yogi = "fedyogi" if yogi else "fedadam", yogi
        self._rounds = 0
        self._m: dict[str, np.ndarray] = {}
        self._v: dict[str, np.ndarray] = {}

    def step(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        rate, (beta_1, beta_2) = RATE, BETAS
        mean = weighted_mean(moves)
        self._check(mean)
        self._rounds += 1
        if not self._yogi:
            rate *= math.sqrt(1 - beta_2**self._rounds) / (1 - beta_1**self._rounds)
        steps = {}
        for name, d in mean.items():
            m, v, square = self._m.get(name, 0.0), self._v.get(name, np.zeros_like(d)), d**2
            self._m[name] = np.asarray(beta_1 * m + (1 - beta_1) * d)
            toward = np.sign(v - square) * square if self._yogi else v - square
            self._v[name] = np.asarray(v - (1 - beta_2) * toward)
            steps[name] = np.asarray(rate * self._m[name] / (np.sqrt(self._v[name]) + TAU))
        return steps

    def statistics(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return weighted_mean(moves)

    def state(self) -> State:
        if not self._rounds:
            return {}
        found: State = {f"{self.name}/t": np.array(self._rounds, np.int64)}
        for letter, tensors in (("m", self._m), ("v", self._v)):
            found |= {f"{self.name}/{letter}/{name}": value for name, value in tensors.items()}
        return found

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from `state`; raise ValueError if it is another strategy's."""
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
            raise ValueError(f"the state of {self.name} is incomplete")
        self._rounds, self._m, self._v = rounds, parts["m"], parts["v"]

    def _check(self, mean: Mapping[str, np.ndarray]) -> None:
        have = {name: value.shape for name, value in self._m.items()}
        if have and have != {name: value.shape for name, value in mean.items()}:
            raise ValueError(f"the state of {self.name} is of another model")


class Krum(StatelessRule):
    """`many` selects Multi-Krum."""

    by_number = False
    least = 5

    def __init__(self, *, many: bool = False) -> None:
        self.name = "multi-krum" if many else "krum"
        self._many = many

    def step(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        bad = (len(moves) - 3) // 2
        near = max(1, len(moves) - bad - 2)
        chosen = np.argsort(scores(moves, near), kind="stable")[: near if self._many else 1]
        return weighted_mean([moves[i]._replace(samples=1) for i in chosen])

    def statistics(self, moves: Sequence[Move]) -> dict[str, np.ndarray]:
        return median(moves)


def scores(moves: Sequence[Move], near: int) -> np.ndarray:
    """The summed squared distances of each update to its `near` nearest others, (updates,)."""
    flat = [np.concatenate([t.ravel() for t in move.tensors.values()]) for move in moves]
    distances = np.zeros((len(flat), len(flat)))
    for i, one in enumerate(flat):
        for j in range(i):
            distances[i, j] = distances[j, i] = ((one - flat[j]) ** 2).sum()
    others = np.sort(distances, axis=1)[:, 1:]  # without the distance to itself, which is 0
    return np.asarray(others[:, :near].sum(axis=1))


RULES: dict[str, Callable[[], Strategy]] = {
    "fedavg": FedAvg,
    "fedprox": lambda: FedAvg("fedprox"),
    "fedbuff": lambda: FedAvg("fedbuff"),
    "fedadam": ServerOptimizer,
    "fedyogi": lambda: ServerOptimizer(yogi=True),
    "median": Median,
    "trimmed-mean": TrimmedMean,
    "krum": Krum,
    "multi-krum": lambda: Krum(many=True),
}


def make(strategy: str) -> Aggregator:
    """Return a fresh aggregator; `strategy` is one of streams.contract.task.STRATEGIES, or that of
    an installed package."""
    if strategy in RULES:
        return Aggregator(RULES[strategy]())
    make_rule = load_extension("strategies", strategy)
    try:
        rule = make_rule()
    except Exception as exc:  # another's code
        raise UsageError(f"strategy {strategy}: {type(exc).__name__}: {line_of(exc)}") from exc
    if missing := [name for name in PARTS if not hasattr(rule, name)]:
        raise UsageError(f"strategy {strategy} has no {', '.join(missing)}: see tidewheel.Strategy")
    return Aggregator(rule)
