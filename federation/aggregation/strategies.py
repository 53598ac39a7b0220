"""The strategies by name: see `streams.contract.task.STRATEGIES`."""

from collections.abc import Callable, Sequence

from federation.aggregation.adaptive import ServerOptimizer
from federation.aggregation.aggregator import SAMPLES_CAP, Aggregator, Rule, RuleAggregator
from federation.aggregation.krum import Krum
from federation.aggregation.mean import SCAFFOLD, FedAvg
from federation.aggregation.median import Median, TrimmedMean

RULES: dict[str, Callable[[float], Rule]] = {
    "fedavg": lambda _: FedAvg(),
    "fedprox": lambda _: FedAvg("fedprox"),
    "scaffold": lambda _: FedAvg(SCAFFOLD),
    "fedbuff": lambda _: FedAvg("fedbuff"),
    "fedadam": ServerOptimizer,
    "fedyogi": lambda rate: ServerOptimizer(rate, yogi=True),
    "median": lambda _: Median(),
    "trimmed-mean": lambda _: TrimmedMean(),
    "krum": lambda _: Krum(),
    "multi-krum": lambda _: Krum(many=True),
}


def make(
    strategy: str,
    learning_rate: float = 0.01,
    shared: Sequence[str] = (),
    samples_cap: int = SAMPLES_CAP,
) -> Aggregator:
    """Return a fresh aggregator; `strategy` is one of streams.contract.task.STRATEGIES,
    `learning_rate` that of the server's optimizers."""
    return RuleAggregator(RULES[strategy](learning_rate), shared, samples_cap)
