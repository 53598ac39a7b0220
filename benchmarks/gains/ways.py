"""What a fleet learns, on both built-in data sets: alone, in rounds by FedAvg, and with all
rows in one place. Each way is measured by all and by half of what it learned."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.frame import Bench, Cell, Figure
from benchmarks.gains.grounds import PEOPLE, SETTINGS, STREETS, Ground, People, people, streets
from benchmarks.support.in_process import BASE, Tensors, round_seed, rounds
from benchmarks.support.study import Study, in_two_processes, study_here
from edge_client.inference import choice
from edge_client.samples.table import ALIGNED, LABELLED
from edge_client.training.adapter_fit import Fitter, cross_validated, evidence_of
from edge_client.training.own_weights import EPOCHS, SHARE_OF_RATE
from federation.admission import Update
from federation.bootstrap.first_models import LEARNING_RATE
from federation.rounds import strategies
from streams.contract.weights import payload
from streams.contract.work import TrainerJob, WorkRequest
from streams.learning import learning as loops
from streams.learning.input_adapter import InputAdapter
from streams.learning.updates import SHARE, interpolated

BEHIND = "offered, behind an adapter"
WORSE = "devices worse by more than a point"
GOALS: Mapping[str, Sequence[tuple[str, str, int, float | None, float | None]]] = {
    "all labels": [
        ("federated, own, %", "FedAvg, as it is, all", 0, 86.8, None),
        ("federated, others, %", "FedAvg, as it is, all", 4, 92.1, None),
        ("offered, then a copy, own, %", "offered, then a copy", 0, 90.1, None),
        (f"{BEHIND}, own, %", BEHIND, 0, 96.0, None),
        (f"{BEHIND}: {WORSE}", BEHIND, 2, None, 0),
        (f"offered: {WORSE}", "offered", 2, None, 0),
    ],
    "five labels a class": [
        (f"{BEHIND}, own, %", BEHIND, 0, 94.0, None),
        (f"{BEHIND}: {WORSE}", BEHIND, 2, None, 0),
    ],
}
DAYS = 7
SENSORS = "pedestrians"


class Course:
    """A fleet that learns by FedAvg."""

    name = "FedAvg, as it is"

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    def rounds(self, seed: int, count: int) -> Iterator[Tensors]:
        """Yield the shared weights after each round."""
        task = self.ground.task
        aggregator = strategies.make("fedavg")
        yield from rounds(
            task, list(self.ground.rows), self.ground.first, count, aggregator,
            lambda name, sent, number: self._train(name, sent, round_seed(seed, number)),
        )  # fmt: skip

    def fit(self, name: str, start: Tensors, seed: int, epochs: int, pace: float = 1.0) -> Tensors:
        """Return what a device makes of weights on its rows; `pace` times the task's rate."""
        task, t = self.ground.task, self.ground.task.training
        model, rows = loops.load_state(loops.build_model(task), start), self.ground.rows[name]
        loops.fit(
            model, len(rows), loops.segment_loss(task, model, rows.x, rows.y), epochs=epochs,
            batch_size=t.batch_size, learning_rate=pace * t.learning_rate, seed=seed,
        )  # fmt: skip
        return {n: tensor.numpy().copy() for n, tensor in model.state_dict().items()}

    def _train(self, name: str, sent: Tensors, seed: int) -> Update:
        task, t = self.ground.task, self.ground.task.training
        trained = self.fit(name, sent, seed, t.epochs)
        block = payload.encode_update(trained, sent, t.payload)
        update = payload.restore_update(payload.unpack(block), sent)
        samples = len(self.ground.rows[name])
        return Update(name, task.name, task.version, BASE, samples, update)


def alone(
    ground: Ground, weights: Tensors, seed: int, epochs: int, pace: float = 1.0
) -> dict[str, Tensors]:
    """Return each device's model, fine-tuned from the same one on its own rows."""
    course = Course(ground)
    return {name: course.fit(name, weights, seed, epochs, pace) for name in ground.rows}


def adapters(ground: People, weights: Tensors) -> dict[str, InputAdapter]:
    """Return the input adapters behind which devices answer, fitted on their own rows and chosen by
    their own labels, as edge_client.inference.challenger does."""
    task = ground.task
    request = WorkRequest(
        op="adapt", run="bench", round=0, task=task.name, task_version=task.version, base=BASE,
        epochs=1, batch_size=1, learning_rate=1.0, time_budget_s=3600.0,
    )  # fmt: skip
    job = TrainerJob(device="", request=request, samples="", stop="/nonexistent")
    model = loops.load_state(loops.build_model(task), weights)
    fitter, found = Fitter(task, model, job), {}
    for name, (segments, labels, last_us) in ground.streams.items():
        told, more = np.isfinite(labels).all(axis=1), np.isnan(labels).any(axis=1)
        rows = np.sort(np.concatenate([
            np.flatnonzero(told)[-LABELLED:], np.flatnonzero(more)[-ALIGNED:],
        ]))  # fmt: skip
        x, y, times = segments[rows], labels[rows], last_us[rows]
        adapter, evidence = cross_validated(task, model, fitter, x, y, times // task.window_us % 4)
        columns = evidence_of(task, evidence, y[evidence.judged])
        compared = choice.compare(
            task, columns["loss"], columns["base_loss"], times[evidence.judged],
            columns["less_surprise"],
        )  # fmt: skip
        if choice.adapter_answers(compared, drifting=False):
            found[name] = adapter
    return found


def central(ground: Ground, seed: int, epochs: int) -> Tensors:
    """Return what the first model becomes with all rows in one place."""
    task = ground.task
    parts = list(ground.rows.values())
    x, y = (np.concatenate(each) for each in ([p.x for p in parts], [p.y for p in parts]))
    model = loops.load_state(loops.build_model(task), ground.first)
    loops.fit(
        model, len(y), loops.segment_loss(task, model, x, y), epochs=epochs,
        batch_size=task.training.batch_size, learning_rate=LEARNING_RATE, seed=seed,
        optimizer="adamw",
    )  # fmt: skip
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


class Found(NamedTuple):
    """What a way comes to with one seed; offered: whether this much of the way is what a run
    offers."""

    way: str
    figures: list[float]
    offered: bool
    rounds: int


def learning(bench: Bench) -> None:
    """FedAvg, alone and central; a table for each amount of labels, and one for the sensors."""
    seeds = Study(bench.folder, bench.quick).seeds(3)
    grounds = bench.size([*SETTINGS, SENSORS], [SENSORS])
    jobs = [(ground, seed) for ground in grounds for seed in seeds]
    done = in_two_processes(bench.folder, bench.quick, _of_ground, jobs)
    for ground in grounds:
        found = [one for (of, _), one in zip(jobs, done, strict=True) if of == ground]
        columns = STREETS if ground == SENSORS else PEOPLE
        rows: list[list[Cell]] = []
        for at, first in enumerate(found[0]):
            some = [of_seed[at] for of_seed in found]
            figures = [Figure.of([one.figures[i] for one in some]) for i in range(len(columns))]
            offered = sum(one.offered for one in some)
            rows.append([first.way, *figures, offered, Figure.of([one.rounds for one in some])])
        text = (
            f"{len(seeds)} seeds. Offered: with how many of them a run offers this much, by what "
            "devices know."
        )
        bench.table(f"Learning, {ground}", ["", *columns, "offered", "rounds"], rows, text)
        if ground in GOALS:
            _goals(bench, ground, found)


def _goals(bench: Bench, ground: str, found: Sequence[Sequence[Found]]) -> None:
    def of(way: str, at: int) -> Figure:
        return Figure.of([one.figures[at] for some in found for one in some if one.way == way])

    for name, way, at, least, most in GOALS[ground]:
        bench.goal(f"{ground}: {name}", of(way, at), at_least=least, at_most=most)


def _of_ground(name: str, seed: int) -> list[Found]:
    """Return what all ways come to with one seed, in a process of the pool."""
    study = study_here()
    count = study.rounds(10)
    if name == SENSORS:
        return list(_measured(streets(DAYS, seed), seed, count))
    return list(_measured(people(study, name, seed), seed, count))


def _measured(ground: Ground, seed: int, count: int) -> Iterator[Found]:
    first, t = ground.first, ground.task.training
    yield Found("first model", _of_one(ground, first), False, 0)
    own = alone(ground, first, seed, t.epochs * count)
    yield Found("each device alone", ground.figures(own, first), False, 0)
    course = Course(ground)
    made = list(course.rounds(seed, count))
    usual = min(t.rounds, len(made))
    yield from _both(course, f"FedAvg, {usual} rounds, the default", made[usual - 1], usual)
    both = list(_both(course, course.name, made[count - 1], count))
    yield from both
    offered = made[count - 1]
    if both[1].offered:
        offered = interpolated(first, offered, SHARE)
    yield Found("offered", _of_one(ground, offered), True, count)
    copies = alone(ground, offered, 1, EPOCHS, SHARE_OF_RATE)
    yield Found("offered, then a copy", ground.figures(copies, offered), False, count)
    if isinstance(ground, People):
        whole = dict.fromkeys(ground.rows, offered)
        behind = ground.figures(whole, offered, adapters(ground, offered))
        yield Found(BEHIND, behind, False, count)
    everything = central(ground, seed, t.epochs * count)
    yield Found("central, all rows in one place", _of_one(ground, everything), False, 0)


def _of_one(ground: Ground, weights: Tensors) -> list[float]:
    return ground.figures(dict.fromkeys(ground.rows, weights), weights)


def _both(course: Course, way: str, learned: Tensors, rounds: int) -> Iterator[Found]:
    """All and half of the way from the first model to what was learned."""
    ground = course.ground
    whole = dict.fromkeys(ground.rows, learned)
    half = {name: interpolated(ground.first, each, SHARE) for name, each in whole.items()}
    goes_all = ground.goes_all(half, whole)
    yield Found(f"{way}, all", ground.figures(whole, learned), goes_all, rounds)
    between = interpolated(ground.first, learned, SHARE)
    yield Found(f"{way}, half", ground.figures(half, between), not goes_all, rounds)
