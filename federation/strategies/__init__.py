"""How admitted updates become the next weights: one algorithm a module, chosen by name.

`federation.aggregator` has the seam and the treatment of each kind of tensor, `flower` makes
Flower's own strategies do the arithmetic.
"""

from collections.abc import Callable, Sequence

from federation.aggregator import SAMPLES_CAP, Aggregator, Rule, Treated
from federation.strategies.fedavg import FedAvg
from federation.strategies.fedopt import fedadam, fedyogi
from federation.strategies.krum import Krum
from federation.strategies.yin import Median, TrimmedMean
from streams.contract.task import Aggregation

RULES: dict[str, Callable[[Aggregation], Rule]] = {
    "fedavg": lambda _: FedAvg(),
    "fedprox": lambda _: FedAvg("fedprox"),
    "fedbuff": lambda _: FedAvg("fedbuff"),
    "fedadam": fedadam,
    "fedyogi": fedyogi,
    "median": lambda _: Median(),
    "trimmed-mean": lambda options: TrimmedMean(options.trim),
    "krum": lambda options: Krum(options.byzantine),
    "multi-krum": lambda options: Krum(options.byzantine, many=True),
}


def make(
    strategy: str,
    options: Aggregation | None = None,
    shared: Sequence[str] = (),
    samples_cap: int = SAMPLES_CAP,
) -> Aggregator:
    """A fresh aggregator; `strategy` is one of streams.contract.task.STRATEGIES."""
    return Treated(RULES[strategy](options or Aggregation()), shared, samples_cap)
