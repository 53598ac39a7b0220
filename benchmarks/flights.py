"""What desks gain from each other on irregular events: `python -m benchmarks.flights`.

The built-in task: whether a flight will be late, about a quarter of them, whose truth comes hours
later. Thirteen desks learn from their first 45 days and are measured on the next 15 by average
precision, of all their flights together and as the mean of the desks. The first model knows two
days of another desk. Each way begins from it.

    rule      the mean delay of the desk's last departures orders the flights
    alone     each desk fine-tunes on its own flights
    fleet     rounds of FedAvg
    central   all flights in one place, as many epochs as a device has in all rounds
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from benchmarks.frame import Bench, Cell, Figure, main
from benchmarks.gains.grounds import Ground, Models, Rows
from benchmarks.gains.ways import Course, alone
from benchmarks.support.study import in_two_processes
from federation.bootstrap.first_models import fit_model
from federation.evaluation.accuracy import HeldOut
from streams.contract.task.metrics import metric_of, value
from streams.segments.segmentation import segments_of
from streams.tasks import flights

ROUNDS, LEARNED_DAYS, RECENT = 10, 45, 1
SEEDS = range(1, 6)
TASK = flights.task
RULE, FIRST, ALONE, FLEET, CENTRAL = "rule", "first model", "alone", "fleet", "central"


@cache
def flown(desk: str) -> tuple[np.ndarray, Rows]:
    """Return days since the desk's first flight, and its flights."""
    found = [(last, x, y) for _, last, x, y in segments_of(TASK.readings(desk), TASK)]
    days = np.array([(last - found[0][0]) / flights.DAY_US for last, *_ in found])
    truth = [np.zeros(1) if y is None else y for *_, y in found]
    return days, Rows(np.stack([x for _, x, _ in found]), np.stack(truth).astype(np.float32))


def part(desk: str, later: bool) -> Rows:
    days, rows = flown(desk)
    chosen = (days >= LEARNED_DAYS) == later
    return Rows(rows.x[chosen], rows.y[chosen])


def together(parts: Iterator[Rows]) -> Rows:
    every = list(parts)
    return Rows(np.concatenate([p.x for p in every]), np.concatenate([p.y for p in every]))


@dataclass(frozen=True)
class Desks(Ground):
    """The task's fleet, and what each desk is measured on."""

    tests: dict[str, Rows]

    def precision(self, models: Models | None) -> tuple[float, dict[str, float]]:
        """Return the average precision over all flights, and of each desk; None: the rule."""
        answers = {
            name: np.stack([-rows.x[:, RECENT, -1], rows.x[:, RECENT, -1]], axis=1)
            if models is None
            else self.outputs(models[name], rows)
            for name, rows in self.tests.items()
        }
        each = {n: self._value(answers[n], self.tests[n].y) for n in answers}
        every = np.concatenate(list(answers.values())), together(iter(self.tests.values())).y
        return self._value(*every), each

    def _value(self, outputs: np.ndarray, labels: np.ndarray) -> float:
        return 100 * value(self.task, metric_of(self.task), outputs, labels)


def of_seed(seed: int) -> dict[str, tuple[float, dict[str, float]]]:
    fleet, settings = TASK.device_names("fleet"), TASK.training
    pilots = together(flown(name)[1] for name in TASK.device_names("pilot"))
    first = fit_model(TASK, HeldOut(pilots.x, pilots.y), seed).state_dict()
    weights = {name: tensor.numpy().copy() for name, tensor in sorted(first.items())}
    rows = {name: part(name, later=False) for name in fleet}
    tests = {name: part(name, later=True) for name in fleet}
    ground, epochs = Desks(TASK, weights, rows, rows, tests), ROUNDS * settings.epochs
    *_, federated = Course(ground).rounds(seed, ROUNDS)
    own = alone(ground, weights, seed, epochs)
    one = Desks(TASK, weights, {"all": together(iter(rows.values()))}, rows, tests)
    central = alone(one, weights, seed, epochs)["all"]
    same = {FIRST: weights, FLEET: federated, CENTRAL: central}
    models = {way: dict.fromkeys(fleet, found) for way, found in same.items()}
    found = {way: ground.precision(each) for way, each in ({**models, ALONE: own}).items()}
    return found | {RULE: ground.precision(None)}


def learning(bench: Bench) -> None:
    seeds = list(SEEDS)[: bench.size(5, 1)]
    found = in_two_processes(bench.folder, bench.quick, of_seed, [(seed,) for seed in seeds])
    every = {way: [each[way][0] for each in found] for way in found[0]}
    mean = {way: [float(np.mean(list(each[way][1].values()))) for each in found] for way in every}
    rows: list[list[Cell]] = []
    for way in (RULE, FIRST, ALONE, FLEET, CENTRAL):
        better = [sum(each[way][1][n] > each[ALONE][1][n] for n in each[way][1]) for each in found]
        rows.append([way, Figure.of(every[way]), Figure.of(mean[way]), Figure.of(better)])
    columns = ["way", "all flights", "mean of the desks", "desks better than alone, of 13"]
    bench.table(f"Average precision, %, {len(seeds)} seeds", columns, rows)
    gained = [a - b for a, b in zip(every[FLEET], every[ALONE], strict=True)]
    bench.goal("fleet above alone, all flights, points", Figure.of(gained), at_least=0.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main("flights", {"learning": learning}, ("torch", "numpy"))
