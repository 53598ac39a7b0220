"""`python -m tests.bench.pedestrians [--quick]`."""

import argparse
import shlex
import sys
from collections import defaultdict

import torch

from tests.bench.machine import load_fact, watched
from tests.bench.pages import begin, finish
from tests.bench.pedestrians.ways import measured
from tests.bench.report import Figure, Goal, Results, Table

DAYS, SEEDS = (7, 28), (1, 2, 3, 4, 5)
FEDERATED, ALONE = "federated, 10 rounds", "each sensor by itself, from the first model"
COPY, WEEK = "federated, then a copy of each sensor's own", "the same hour a week before"


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
        with watched() as load:
            _table(results, days, seeds, load)
        highest = max(highest, load.others)
    results.facts["other load"] = load_fact(highest)
    finish("pedestrians", results, whole=not quick)


def _table(results: Results, days: int, seeds: tuple[int, ...], load) -> None:  # type: ignore[no-untyped-def]
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for seed in seeds:
        for way, figures in measured(days, seed).items():
            found[way].append(figures)
    rmse = {way: Figure.of([one[0] for one in some]) for way, some in found.items()}
    r2 = {way: Figure.of([one[1] for one in some]) for way, some in found.items()}
    week = rmse[WEEK].median
    rows = [[way, rmse[way], rmse[way].median / week, r2[way], len(seeds)] for way in found]
    text = f"{days} days to learn from."
    columns = ["", "RMSE", "of last week's", "R2", "seeds"]
    results.tables.append(Table(f"{days} days", text, columns, rows))
    for name in (FEDERATED, COPY):
        for other in (ALONE, WEEK, "the hour before"):
            text = f"{days} days: RMSE of {name}, to {other}"
            results.goals.append(Goal(text, rmse[name].median / rmse[other].median, at_most=1.0))


if __name__ == "__main__":
    main()
