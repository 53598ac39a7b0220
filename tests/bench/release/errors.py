"""How a canary of numbers is judged in made-up fleets: `python -m tests.bench.release.errors`.

Prints the table of docs/architecture/releases.md, in about a minute.
"""

import statistics
import sys
from collections import Counter

from streams.contract.window_metrics import WindowMetric
from tests.federation.rollout.test_metrics import rollout

FLEETS = 100
METRICS: tuple[WindowMetric, ...] = ("mae", "rmse")


def main() -> None:
    for metric in METRICS:
        for factor in (1.0, 1.1, 1.3, 0.9):
            found = [rollout(seed, metric, factor) for seed in range(FLEETS)]
            verdicts = Counter(verdict.verdict for verdict, _ in found)
            windows = statistics.median(n for _, n in found)
            shares = ", ".join(f"{name} {n / FLEETS:.0%}" for name, n in verdicts.items())
            sys.stdout.write(
                f"{metric}, errors {factor} times those before: {shares}; median {windows:.0f}\n"
            )


if __name__ == "__main__":
    main()
