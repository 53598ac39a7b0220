"""`python -m tests.bench.pedestrians [--quick]`."""

import argparse
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence

import torch

from tests.bench.machine import PATIENCE_S, Load, load_fact, wait_until_quiet, watched
from tests.bench.pages import begin, finish
from tests.bench.pedestrians.ways import Found, measured
from tests.bench.report import Figure, Goal, Results, Table

DAYS, SEEDS = (7, 28), (1, 2, 3, 4, 5)
FEDERATED, ALONE = "federated, 10 rounds", "each sensor by itself, from the first model"
COPY, WEEK = "federated, then a copy of each sensor's own", "the same hour a week before"
CENTRAL = "central, all rows in one place"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pedestrians")
    parser.add_argument("--quick", action="store_true", help="one seed; writes no page")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    command = shlex.join(["python", "-m", "tests.bench.pedestrians", *sys.argv[1:]])
    results = begin("pedestrians", command, "", ("torch", "numpy", "pyarrow"))
    seeds = SEEDS[:1] if quick else SEEDS
    highest = 0.0
    for days in DAYS:
        wait_until_quiet(None, PATIENCE_S)
        with watched() as load:
            _table(results, days, seeds, load)
        highest = max(highest, load.others)
    results.facts["other load"] = load_fact(highest, "a table")
    finish("pedestrians", results, whole=not quick)


def _table(results: Results, days: int, seeds: tuple[int, ...], load: Load) -> None:
    found: dict[str, list[Found]] = defaultdict(list)
    for seed in seeds:
        for way, one in measured(days, seed).items():
            found[way].append(one)
    rmse = {way: Figure.of([one.rmse for one in some]) for way, some in found.items()}
    r2 = {way: Figure.of([one.r2 for one in some]) for way, some in found.items()}
    week = rmse[WEEK].median
    rows = [
        [way, rmse[way], rmse[way].median / week, r2[way], better(found[way], found[ALONE]),
         better(found[way], found[CENTRAL]), len(seeds)]
        for way in found
    ]  # fmt: skip
    count = len(found[WEEK][0].by_sensor)
    text = (
        f"{days} days to learn from. Better: of {count} sensors those with a smaller RMSE, by the "
        "mean of the seeds, than by itself from the first model, and than central."
    )
    columns = ["", "RMSE", "of last week's", "R2", "better than alone", "than central", "seeds"]
    results.tables.append(Table(f"{days} days", text, columns, rows))
    for name in (FEDERATED, COPY):
        for other in (ALONE, WEEK, "the hour before"):
            text = f"{days} days: RMSE of {name}, to {other}"
            results.goals.append(Goal(text, rmse[name].median / rmse[other].median, at_most=1.0))
    for other, wanted in ((ALONE, count), (CENTRAL, count // 2 + 1)):
        text = f"{days} days: sensors of {count} that are better {FEDERATED} than {other}"
        won = better(found[FEDERATED], found[other])
        results.goals.append(Goal(text, won, at_least=wanted))


def better(some: Sequence[Found], others: Sequence[Found]) -> int:
    """Return how many sensors have a smaller RMSE by the mean of the seeds."""
    means = [
        {name: sum(one.by_sensor[name] for one in each) for name in each[0].by_sensor}
        for each in (some, others)
    ]
    return sum(means[0][name] < means[1][name] for name in means[0])


if __name__ == "__main__":
    main()
