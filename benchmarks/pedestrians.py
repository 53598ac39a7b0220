"""What street sensors gain from each other: `python -m benchmarks.pedestrians`.

Real hourly counts of Auckland's centre. Twelve sensors forecast the next hour over four weeks on
which nobody has trained, from what they counted in the week, or the four weeks, before; the first
model has learned from the pilots' first week. RMSE is in pedestrians an hour, over all hours of all
sensors, so that busy streets weigh most.
"""

from collections import defaultdict

import numpy as np
import torch

from benchmarks.frame import Bench, Cell, Figure, main
from benchmarks.gains.grounds import Streets, rms, streets
from benchmarks.gains.ways import Course, Scaffold, alone, central
from benchmarks.support.study import in_two_processes
from edge_client.training.own_weights import EPOCHS, SHARE_OF_RATE
from streams.learning.interpolation import SHARE, interpolated

ROUNDS = 10
COUNT, WEEK_AGO = 0, 1  # channels
HOUR, WEEK = "the hour before", "the same hour a week before"
ALONE, FEDERATED = "each sensor alone, from the first model", "federated by SCAFFOLD"
COPY, CENTRAL = "federated, then a copy of each sensor's", "central, all rows in one place"
Found = dict[str, tuple[float, dict[str, float]]]  # by way: the RMSE of all, and of each


def forecasts(bench: Bench) -> None:
    seeds = range(1, bench.size(5, 1) + 1)
    jobs = [(days, seed) for days in (7, 28) for seed in seeds]
    done = in_two_processes(bench.folder, bench.quick, _of_seed, jobs)
    for days in (7, 28):
        found = [one for (of, _), one in zip(jobs, done, strict=True) if of == days]
        means: dict[str, dict[str, float]] = defaultdict(dict)
        for way, (_, sensors) in found[0].items():
            for name in sensors:
                means[way][name] = float(np.mean([one[way][1][name] for one in found]))
        rmse = {way: Figure.of([one[way][0] for one in found]) for way in found[0]}

        def better(way: str, other: str, means: dict[str, dict[str, float]] = means) -> int:
            return sum(means[way][name] < means[other][name] for name in means[way])

        rows: list[list[Cell]] = [
            [way, each, each.median / rmse[WEEK].median, better(way, ALONE), better(way, CENTRAL)]
            for way, each in rmse.items()
        ]
        text = f"{days} days to learn from; sensors of 12 that are better, by the seeds' mean."
        columns = ["", "RMSE", "of last week's", "better than alone", "than central"]
        bench.table(f"{days} days", columns, rows, text)
        for way in (FEDERATED, COPY):
            for other in (ALONE, WEEK, HOUR):
                text = f"{days} days: RMSE of {way}, to {other}"
                bench.goal(text, rmse[way].median / rmse[other].median, at_most=1.0)
        for other, least in ((ALONE, 12), (CENTRAL, 7)):
            text = f"{days} days: sensors of 12 that are better {FEDERATED} than {other}"
            bench.goal(text, better(FEDERATED, other), at_least=least)


def _of_seed(days: int, seed: int) -> Found:
    ground = streets(days, seed)
    task, t, first = ground.task, ground.task.training, ground.first
    epochs, found = ROUNDS * t.epochs, dict[str, tuple[float, dict[str, float]]]()

    def note(way: str, answers: dict[str, np.ndarray]) -> None:
        errors = {name: ground.errors(name, each) for name, each in answers.items()}
        every = rms(np.concatenate(list(errors.values())))
        found[way] = every, {name: rms(each) for name, each in errors.items()}

    note(HOUR, {n: rows.x[:, COUNT, -1:] for n, rows in ground.tests.items()})
    note(WEEK, {n: rows.x[:, WEEK_AGO, -1:] for n, rows in ground.tests.items()})
    scratch = {n: v.detach().numpy().copy() for n, v in task.build_model().state_dict().items()}
    federated = {kind: list(kind(ground).rounds(seed, ROUNDS))[-1] for kind in (Course, Scaffold)}
    best = federated[Scaffold]
    for way, models in (
        ("first model", _each(ground, first)),
        ("each sensor alone, from nothing", alone(ground, scratch, seed, epochs)),
        (ALONE, alone(ground, first, seed, epochs)),
        ("federated by FedAvg", _each(ground, federated[Course])),
        (FEDERATED, _each(ground, best)),
        ("half of the way to that", _each(ground, interpolated(first, best, SHARE))),
        (COPY, alone(ground, best, seed, EPOCHS, SHARE_OF_RATE)),
        (CENTRAL, _each(ground, central(ground, seed, epochs))),
    ):
        note(way, {n: ground.outputs(models[n], rows) for n, rows in ground.tests.items()})
    return found


def _each(ground: Streets, weights: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    return dict.fromkeys(ground.tests, weights)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main("pedestrians", {"forecasts": forecasts}, ("torch", "numpy"))
