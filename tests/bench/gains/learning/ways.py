"""Other ways for a heterogeneous fleet to learn, on both built-in data sets."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from streams.learning.interpolation import interpolated
from tests.bench.federation.people import SETTINGS
from tests.bench.federation.study import FULL, TASK, Size, Study, in_two_processes, study_here
from tests.bench.federation.trainees import Tensors
from tests.bench.gains.fleet import installed
from tests.bench.gains.learning.courses import (
    ByGain,
    Course,
    Distilled,
    Equal,
    FedBN,
    FedProx,
    HardLabels,
    LogitAdjusted,
    Scaffold,
)
from tests.bench.gains.learning.grounds import Figures, Ground, people, streets
from tests.bench.gains.learning.lessons import taught, weighed
from tests.bench.machine import watched
from tests.bench.report import Cell, Figure, Results, Table

SEEDS, DAYS = 3, 7
PATIENCE = 3  # rounds without a rise
LONGEST = 3  # times the rounds of the other ways
BY_EVIDENCE = "stop by evidence"
FEW, STREETS = "five labels a class", "pedestrians"
OF_PEOPLE = (FedProx, FedBN, Scaffold, LogitAdjusted, Equal, ByGain)
OF_STREETS = (FedProx, Scaffold, Equal, ByGain)  # no batch norm, no classes
PEOPLE_COLUMNS = ("own", "least", "worse", "worst", "others")
STREETS_COLUMNS = ("RMSE", "worse", "worst, %")


class Found(NamedTuple):
    """What a way comes to with one seed. `far`: all or half of the way; offered: whether this is
    what a run offers; rounds: how many were trained."""

    way: str
    far: str
    figures: Figures
    offered: bool
    rounds: int
    refused: int = 0


def ways(study: Study, results: Results) -> None:
    """A table for each amount of labels, and one for the sensors."""
    size = study.size
    seeds = size.seeds[: SEEDS if size == FULL else 1]
    grounds = [*SETTINGS, STREETS]
    installed(TASK, study.folder / "prepared")  # trained once: both processes find it
    with watched() as load:
        jobs = [(size, ground, seed) for ground in grounds for seed in seeds]
        done = in_two_processes(study.folder, of_ground, jobs)
    loaded = f"{_COMMON} Others' load: {load.others:.0%}."
    for ground in grounds:
        found = [all_ways for (_, of, _), all_ways in zip(jobs, done, strict=True) if of == ground]
        if ground == STREETS:
            text, columns = f"{_STREETS} {loaded}", STREETS_COLUMNS
        else:
            text, columns = f"{_PEOPLE} Setting: {ground}. {loaded}", PEOPLE_COLUMNS
        results.tables.append(_table(f"Other ways, {ground}", text, columns, found))


def of_ground(size: Size, ground: str, seed: int) -> list[Found]:
    """What all ways come to with one seed, in a process of the pool."""
    study, count = study_here(size), size.rounds[-1]
    of = _of_streets if ground == STREETS else partial(_of_people, setting=ground)
    return list(of(study, seed=seed, count=count))


def _of_people(study: Study, setting: str, seed: int, count: int) -> Iterator[Found]:
    ground = people(study, setting, seed)
    say = _said(study, f"{setting}, seed {seed}")
    yield from say(measured(ground, OF_PEOPLE, seed, count))
    if setting == FEW:
        made = installed(TASK, study.folder / "prepared")
        both = taught(ground, made)
        for given, how in ((both, ""), (weighed(both, made), ", weighed")):
            for kind in (HardLabels, Distilled):
                some = _after(kind(given), seed, count)
                yield from say(one._replace(way=one.way + how) for one in some)


def _of_streets(study: Study, seed: int, count: int) -> Iterator[Found]:
    say = _said(study, f"pedestrians, seed {seed}")
    yield from say(measured(streets(DAYS, seed), OF_STREETS, seed, count))


def _said(study: Study, of: str) -> Callable[[Iterator[Found]], Iterator[Found]]:
    def say(some: Iterator[Found]) -> Iterator[Found]:
        for one in some:
            figures = ", ".join("-" if f is None else f"{f:.1f}" for f in one.figures)
            offered = ", offered" if one.offered else ""
            trained = f"{one.rounds} rounds, {one.refused} refused"
            study.say(f"{of}: {one.way}, {one.far}: {figures}{offered}, {trained}")
            yield one

    return say


def measured(
    ground: Ground, others: Sequence[type[Course]], seed: int, count: int
) -> Iterator[Found]:
    """Yield what the first model, FedAvg, other ways and FedAvg ended by evidence come to."""
    yield Found("first model", "", _of_first(ground), False, 0)
    course, scores, made = Course(ground), list[float](), list[Tensors]()
    for weights in course.rounds(seed, LONGEST * count):
        made.append(weights)
        scores.append(ground.score(weights))
        if len(made) >= count and ended(scores):
            break
    usual = ground.task.training.rounds
    for one in _both(course, made[usual - 1], usual):
        yield one._replace(way=f"FedAvg, {usual} rounds, the default")
    yield from _both(course, made[count - 1], count)
    for kind in others:
        yield from _after(kind(ground), seed, count)
    best, used = best_round(scores)
    for one in _both(course, made[best - 1], used):
        yield one._replace(way=BY_EVIDENCE)


def _of_first(ground: Ground) -> Figures:
    return ground.figures(dict.fromkeys(ground.rows, ground.first), ground.first)


def best_round(scores: Sequence[float]) -> tuple[int, int]:
    """Return the best round (from 1) and how many were trained until none of PATIENCE rounds was
    better than the best before them."""
    best = 0
    for at, score in enumerate(scores):
        if score > scores[best]:
            best = at
        if at - best >= PATIENCE:
            return best + 1, at + 1
    return best + 1, len(scores)


def ended(scores: Sequence[float]) -> bool:
    """Return whether no more rounds are needed."""
    best, used = best_round(scores)
    return used - best >= PATIENCE


def _after(course: Course, seed: int, count: int) -> Iterator[Found]:
    *_, weights = course.rounds(seed, count)
    yield from _both(course, weights, count)


def _both(course: Course, learned: Tensors, rounds: int) -> Iterator[Found]:
    """All and half of the way from the first model to what was learned."""
    ground = course.ground
    all_of_it = {name: course.of(name, learned) for name in ground.rows}
    half_of_it = {name: _half(ground, weights) for name, weights in all_of_it.items()}
    whole = ground.goes_all(half_of_it, all_of_it)
    refused = sum(course.tally.refused.values())
    for far, models, weights, offered in (
        ("all", all_of_it, learned, whole),
        ("half", half_of_it, _half(ground, learned), not whole),
    ):
        found = ground.figures(models, weights)
        yield Found(course.name, far, found, offered, rounds, refused)


def _half(ground: Ground, learned: Tensors) -> Tensors:
    return interpolated(ground.first, learned, ground.task.training.interpolation)


def _table(title: str, text: str, columns: Sequence[str], found: list[list[Found]]) -> Table:
    """`found` has the same ways for each seed."""
    rows: list[list[Cell]] = []
    usual = {(one.way, one.far): at for at, one in enumerate(found[0])}
    for at, first in enumerate(found[0]):
        some = [of_seed[at] for of_seed in found]
        beside = usual.get((Course.name, first.far))
        figures = [_figure([one.figures[i] for one in some]) for i in range(len(columns))]
        changes = (
            [of[at].figures[0] - of[beside].figures[0] for of in found]  # type: ignore[operator]
            if beside is not None
            else [None]
        )
        offered = sum(one.offered for one in some) if first.far else None
        rounds = _figure([float(one.rounds) for one in some])
        refused = sum(one.refused for one in some)
        rows.append([
            first.way, first.far, len(some), *figures, _figure(changes), offered, rounds, refused,
        ])  # fmt: skip
    names = [
        "", "of the way", "seeds", *columns, f"{columns[0]}, change", "offered", "rounds",
        "refused",
    ]  # fmt: skip
    return Table(title, text, names, rows)


def _figure(values: Sequence[float | None]) -> Figure | None:
    found = [value for value in values if value is not None]
    return Figure.of(found) if found else None


_COMMON = (
    "The median of the seeds, the least and the most. Change: in the first figure, from FedAvg as "
    "it is with the same seed and as much of the way. Offered: with how many seeds a run offers "
    "this much of the way, by what devices know of the rows that they hold out. Rounds: that were "
    f"trained; {BY_EVIDENCE} takes the best before {PATIENCE} rounds without a rise on devices of "
    "no fleet. Refused: updates, by admission, of all seeds."
)
_PEOPLE = (
    "Percent right on all segments that 15 devices hold out; least: the device with the least; "
    "worse: devices that are more than a point worse than with the first model; worst: the change "
    "of the one that is worst off, in points; others: people of no fleet, for FedBN with the first "
    "model's batch norm. Half of the way goes for a device's own batch norm too. Rounds are "
    "ended by half of the segments of the same people."
)
_STREETS = (
    f"RMSE in pedestrians an hour, over all hours of twelve sensors, with {DAYS} days to learn "
    "from; worse: sensors that are worse than with the first model; worst: the change of RMSE of "
    "the one that is worst off. What a sensor holds out are the days before those. It has neither "
    "batch norm nor classes, and its truth comes by itself: FedBN, the adjusted loss and the "
    "teacher do not apply."
)
