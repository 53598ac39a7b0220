"""Fleets of the built-in tasks as rows in memory: what devices recorded, cut and split as a device
does, what each learns from, and what it is measured on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from edge_client.samples.table import HELD_OUT, NEITHER, TRAIN, split_of
from federation.bootstrap.first_models import fit_model
from federation.evaluation.accuracy import HeldOut
from streams.contract.task import Role, Task, load_task
from streams.contract.task.metrics import metric_of, value
from streams.learning import learning
from streams.learning.input_adapter import InputAdapter
from streams.segments.segmentation import segments_of
from streams.tasks import flights, pedestrians

Tensors = dict[str, np.ndarray]
Models = Mapping[str, Tensors]  # by device


@dataclass(frozen=True)
class Rows:
    """Segments (n, channels, samples) and labels (n, label_size) float32."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Recording:
    """A device's labelled segments; split (n,) as edge_client.samples.table has it; last_us (n,),
    the times at which segments end."""

    device: str
    rows: Rows
    split: np.ndarray
    last_us: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> Rows:
        return Rows(self.rows.x[chosen], self.rows.y[chosen])


@cache
def recordings(reference: str, *roles: Role) -> list[Recording]:
    """Return what a task's devices with these roles recorded, in the task's order."""
    task, found = load_task(reference), []
    for name in task.device_names(*roles):
        cut = [each for each in segments_of(task.readings(name), task) if each[3] is not None]
        rows = Rows(
            np.stack([segment for _, _, segment, _ in cut]).astype(np.float32),
            np.stack([label for *_, label in cut]).astype(np.float32),  # type: ignore[misc]
        )
        split = np.array([split_of(task, first, last) for first, last, _, _ in cut])
        found.append(Recording(name, rows, split, np.array([last for _, last, *_ in cut])))
    return found


@dataclass(frozen=True)
class Result:
    """The task's figure over the rows of all devices together, of each device, and of devices of
    no fleet."""

    together: float
    each: Mapping[str, float]
    others: float | None


@dataclass(frozen=True)
class Fleet:
    """rows: what each device learns from; tests: what it is measured on; known: what it holds out
    with labels that it knows, where a run chooses by that; streams: all that it may fit an adapter
    to, by time, with labels that are NaN where unknown, and when segments end."""

    task: Task
    first: Tensors
    rows: Mapping[str, Rows]
    tests: Mapping[str, Rows]
    known: Mapping[str, Rows]
    streams: Mapping[str, tuple[Rows, np.ndarray]]
    others: Rows | None = None

    def measure(self, answers: Mapping[str, np.ndarray], others: float | None = None) -> Result:
        each = {name: self._figure(answers[name], rows.y) for name, rows in self.tests.items()}
        every = np.concatenate([answers[name] for name in self.tests])
        return Result(self._figure(every, together(self.tests.values()).y), each, others)

    def of_each(self, models: Models, adapters: Mapping[str, InputAdapter]) -> Result:
        return self.measure({
            name: self.outputs(models[name], adapters[name].apply(rows.x) if name in adapters
                               else rows.x)
            for name, rows in self.tests.items()
        })  # fmt: skip

    def of_all(self, weights: Tensors) -> Result:
        answers = {name: self.outputs(weights, rows.x) for name, rows in self.tests.items()}
        if self.others is None:
            return self.measure(answers)
        of_others = self._figure(self.outputs(weights, self.others.x), self.others.y)
        return self.measure(answers, of_others)

    def outputs(self, weights: Tensors, x: np.ndarray) -> np.ndarray:
        model = learning.load_state(learning.build_model(self.task), weights)
        return learning.predict(model, x)

    def _figure(self, outputs: np.ndarray, labels: np.ndarray) -> float:
        metric = metric_of(self.task)
        if self.task.classes:
            return 100 * value(self.task, metric, outputs, labels)
        return value(self.task, metric, np.expm1(outputs), np.expm1(labels))  # of log counts


def together(parts: Iterable[Rows]) -> Rows:
    every = list(parts)
    return Rows(np.concatenate([p.x for p in every]), np.concatenate([p.y for p in every]))


def first_model(task: Task, rows: Rows, seed: int) -> Tensors:
    state = fit_model(task, HeldOut(rows.x, rows.y), seed).state_dict()
    return {name: tensor.numpy().copy() for name, tensor in sorted(state.items())}


def _five_a_class(of: Recording, dice: np.random.Generator) -> np.ndarray:
    """Of each class five segments to learn from and five that are held out, at most."""
    chosen, classes = np.zeros(len(of.rows), np.bool_), of.rows.y[:, 0]
    for part in (TRAIN, HELD_OUT):
        for kind in np.unique(classes):
            rows = np.flatnonzero((of.split == part) & (classes == kind))
            chosen[dice.permutation(rows)[:5]] = True
    return chosen


def _half_of_classes(of: Recording, dice: np.random.Generator) -> np.ndarray:
    """All segments of half of the classes, of other ones on each device."""
    kinds = np.unique(of.rows.y[:, 0])
    known = dice.permutation(kinds)[: len(kinds) // 2]
    return np.asarray((of.split != NEITHER) & np.isin(of.rows.y[:, 0], known))


LABELS: dict[str, Callable[[Recording, np.random.Generator], np.ndarray]] = {
    "all labels": lambda of, _: np.asarray(of.split != NEITHER),
    "five labels a class": _five_a_class,
    "labels of 3 of 6 classes": _half_of_classes,
}


def people(setting: str, seed: int) -> Fleet:
    dice, at = np.random.default_rng(seed), "streams.tasks.har:task"
    fleet = recordings(at, "fleet")
    told = {each.device: LABELS[setting](each, dice) for each in fleet}
    pilots, others = (together(r.rows for r in recordings(at, role))
                      for role in ("pilot", "held-out"))  # fmt: skip
    streams = {}
    for each in fleet:
        y = np.where(told[each.device][:, None], each.rows.y, np.float32(np.nan))
        train = each.split == TRAIN
        streams[each.device] = Rows(each.rows.x[train], y[train]), each.last_us[train]
    return Fleet(
        load_task(at), first_model(load_task(at), pilots, seed),
        {each.device: each[told[each.device] & (each.split == TRAIN)] for each in fleet},
        {each.device: each[each.split == HELD_OUT] for each in fleet},
        {each.device: each[told[each.device] & (each.split == HELD_OUT)] for each in fleet},
        streams, others,
    )  # fmt: skip


TEST_FROM, TEST_DAYS, PILOT_DAYS = 56, 28, 7  # from the year's begin


def streets(setting: str, seed: int) -> Fleet:
    """The days before the test; as many before those are held out."""
    days, at = int(setting.split()[0]), "streams.tasks.pedestrians:task"
    begin_us = int(np.datetime64(f"{pedestrians.YEAR}-01-01", "us").astype(np.int64))

    def of(sensor: Recording, first: int, days: int) -> Rows:
        day = (sensor.last_us - begin_us) / (24 * pedestrians.HOUR_US)
        return sensor[(day >= first) & (day < first + days)]

    pilots = together(of(each, 0, PILOT_DAYS) for each in recordings(at, "pilot"))
    spans = ((TEST_FROM - days, days), (TEST_FROM, TEST_DAYS), (TEST_FROM - 2 * days, days))
    rows, tests, known = (
        {each.device: of(each, *span) for each in recordings(at, "fleet")} for span in spans
    )
    return Fleet(load_task(at), first_model(load_task(at), pilots, seed), rows, tests, known, {})


def desks(setting: str, seed: int) -> Fleet:
    days, at = int(setting.split()[0]), "streams.tasks.flights:task"
    rows, tests = dict[str, Rows](), dict[str, Rows]()
    for each in recordings(at, "fleet"):
        late = each.last_us - each.last_us[0] >= days * flights.DAY_US
        rows[each.device], tests[each.device] = each[~late], each[late]
    pilots = together(each.rows for each in recordings(at, "pilot"))
    return Fleet(load_task(at), first_model(load_task(at), pilots, seed), rows, tests, {}, {})


FLEETS: dict[str, tuple[Callable[[str, int], Fleet], Sequence[str]]] = {
    "har": (people, list(LABELS)),
    "pedestrians": (streets, ("7 days", "28 days")),
    "flights": (desks, ("45 days",)),
}
