"""The strategies by name: see `streams.contract.task.STRATEGIES`."""

from collections.abc import Callable, Sequence

from federation.aggregation.adaptive import ServerOptimizer
from federation.aggregation.aggregator import SAMPLES_CAP, Aggregator, Rule, RuleAggregator
from federation.aggregation.krum import Krum
from federation.aggregation.mean import SCAFFOLD, FedAvg
from federation.aggregation.median import Median, TrimmedMean
from streams.contract.task import Aggregation

RULES: dict[str, Callable[[Aggregation], Rule]] = {
    "fedavg": lambda _: FedAvg(),
    "fedprox": lambda _: FedAvg("fedprox"),
    "scaffold": lambda _: FedAvg(SCAFFOLD),
    "fedbuff": lambda _: FedAvg("fedbuff"),
    "fedadam": ServerOptimizer,
    "fedyogi": lambda options: ServerOptimizer(options, yogi=True),
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
    """Return a fresh aggregator; `strategy` is one of streams.contract.task.STRATEGIES."""
    return RuleAggregator(RULES[strategy](options or Aggregation()), shared, samples_cap)
