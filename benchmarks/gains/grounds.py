"""The two built-in data sets as fleets that learn in one process: what each device learns from,
what it knows of the rows that it holds out, and how well models do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from benchmarks.gains.fleet import outputs_of
from benchmarks.support.in_process import (
    Tensors,
    every_label,
    five_a_class,
    half_of_classes,
    right,
    share,
)
from benchmarks.support.study import WORSE, Study
from edge_client.samples.table import HELD_OUT, TRAIN
from edge_client.training import trainer_process
from federation.bootstrap.first_models import fit_model
from federation.evaluation import device_metrics, evidence
from federation.evaluation.accuracy import HeldOut
from federation.evaluation.device_metrics import DeviceResult
from federation.evaluation.paired import Paired
from streams.contract.task import Task
from streams.learning import learning
from streams.learning.input_adapter import InputAdapter
from streams.segments.segmentation import segments_of
from streams.tasks import pedestrians

SETTINGS = {
    "all labels": every_label,
    "five labels a class": five_a_class,
    "labels of 3 of 6 classes": half_of_classes,
}
DAY_US = 24 * pedestrians.HOUR_US
BEGIN_US = int(np.datetime64(f"{pedestrians.YEAR}-01-01", "us").astype(np.int64))
PILOT_DAYS, TEST_FROM, TEST_DAYS = 7, 56, 28  # from the year's begin
Models = Mapping[str, Tensors]  # by device
Adapters = Mapping[str, InputAdapter]
NO_ADAPTERS: Adapters = {}


@dataclass(frozen=True)
class Rows:
    """Segments (n, channels, samples) and labels (n, label_size)."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Ground:
    """rows: what each device learns from; known: rows that it holds out, with labels that it
    knows."""

    task: Task
    first: Tensors
    rows: Mapping[str, Rows]
    known: Mapping[str, Rows]

    def figures(
        self, models: Models, weights: Tensors, adapters: Adapters = NO_ADAPTERS
    ) -> list[float]:
        """Return how well each device's model does, and `weights` on devices of no fleet."""
        raise NotImplementedError

    def goes_all(self, half: Models, whole: Models) -> bool:
        """Return whether a run offers all of what it learned, by what devices know alone."""
        found: list[dict[str, DeviceResult]] = []
        for models in (half, whole):
            each = {name: self._compared(name, models[name]) for name in self.rows}
            found.append({name: result for name, result in each.items() if result is not None})
        return evidence.choose_step(self.task, found[0], found[1], Paired()).whole

    def outputs(self, weights: Tensors, rows: Rows) -> np.ndarray:
        return outputs_of(self.task, weights, rows.x)

    def _compared(self, name: str, weights: Tensors) -> DeviceResult | None:
        build, load = learning.build_model, learning.load_state
        rows = self.known[name]
        first, other = (
            learning.predict(load(build(self.task), w), rows.x) for w in (self.first, weights)
        )
        said = trainer_process.compare(self.task, (first, other), rows.y)
        return device_metrics.read(self.task, said)


PEOPLE = ("own", "least", "worse", "worst", "others")


@dataclass(frozen=True)
class People(Ground):
    """The built-in task's people. Figures: percent right of all that is held out (own), of the
    device with the least, devices that are more than a point worse than with the first model and
    the worst change in points, percent right of people of no fleet (others). streams: what is not
    held out, by time: segments, labels, NaN where unknown, and when segments end."""

    study: Study
    streams: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]

    def figures(
        self, models: Models, weights: Tensors, adapters: Adapters = NO_ADAPTERS
    ) -> list[float]:
        fleet, task = self.study.fleet, self.task
        read = [each.seen_by(adapters.get(each.name)) for each in fleet]
        before = {p.name: right(task, self.first, p) for p in fleet}
        after = {p.name: right(task, models[p.name], p) for p in read}
        each = {name: 100 * float(rows.mean()) for name, rows in after.items()}
        changes = [each[name] - 100 * float(rows.mean()) for name, rows in before.items()]
        own = 100 * float(np.concatenate(list(after.values())).mean())
        worse = float(sum(change < -WORSE for change in changes))
        others = share(task, weights, self.study.held_out)
        return [own, min(each.values()), worse, min(changes), others]


def people(study: Study, setting: str, seed: int) -> People:
    """Return the fleet with as many labels as the setting gives."""
    dice = np.random.default_rng(seed)
    labelled = {person.name: SETTINGS[setting](person, dice) for person in study.fleet}

    def of(split: int) -> dict[str, Rows]:
        chosen = {p.name: labelled[p.name] & (p.split == split) for p in study.fleet}
        return {p.name: Rows(p.segments[chosen[p.name]], p.labels[chosen[p.name]])
                for p in study.fleet}  # fmt: skip

    streams = {}
    for p in study.fleet:
        train = p.split == TRAIN
        told = np.where(labelled[p.name][:, None], p.labels, np.float32(np.nan))
        streams[p.name] = p.segments[train], told[train], p.last_us[train]
    return People(study.task, study.first_model(seed), of(TRAIN), of(HELD_OUT), study, streams)


@cache
def _hours(sensor: str) -> tuple[np.ndarray, Rows]:
    """Return hours since the year's begin, and the rows of a sensor's first days."""
    end_us = BEGIN_US + (TEST_FROM + TEST_DAYS) * DAY_US
    found = [
        (last, segment, label)
        for _, last, segment, label in segments_of(pedestrians.task.readings(sensor),
                                                   pedestrians.task)
        if label is not None and last < end_us
    ]  # fmt: skip
    x, y = (np.stack([row[i] for row in found]).astype(np.float32) for i in (1, 2))
    return np.array([(last - BEGIN_US) // pedestrians.HOUR_US for last, *_ in found]), Rows(x, y)


def rows_of(sensors: Sequence[str], first_day: int, days: int) -> Rows:
    parts = []
    for sensor in sensors:
        hours, rows = _hours(sensor)
        chosen = (hours >= 24 * first_day) & (hours < 24 * (first_day + days))
        parts.append(Rows(rows.x[chosen], rows.y[chosen]))
    return Rows(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))


STREETS = ("RMSE", "worse", "worst, %")


@dataclass(frozen=True)
class Streets(Ground):
    """The sensors of the task `pedestrians`. Figures: RMSE in pedestrians an hour over all hours of
    the test, sensors that are worse than with the first model, the worst change in percent."""

    tests: Mapping[str, Rows]

    def figures(
        self, models: Models, weights: Tensors, adapters: Adapters = NO_ADAPTERS
    ) -> list[float]:
        after, before = (self.rmses(w) for w in (models, dict.fromkeys(models, self.first)))
        changes = [100 * (after[n] / before[n] - 1) for n in self.tests]
        errors = [self.errors(n, self.outputs(models[n], rows)) for n, rows in self.tests.items()]
        worse = float(sum(change > 0 for change in changes))
        return [rms(np.concatenate(errors)), worse, max(changes)]

    def rmses(self, models: Models) -> dict[str, float]:
        """Return the RMSE of each sensor."""
        return {n: rms(self.errors(n, self.outputs(models[n], t))) for n, t in self.tests.items()}

    def errors(self, name: str, outputs: np.ndarray) -> np.ndarray:
        return np.asarray(np.expm1(outputs) - np.expm1(self.tests[name].y))


def rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.square(errors.astype(np.float64)).mean()))


def streets(days: int, seed: int) -> Streets:
    """Return the sensors with the `days` days before the test; they hold out as many before
    those. The first model knows the pilots' first week."""
    task = pedestrians.task
    fleet = task.device_names("fleet")
    pilots = rows_of(task.device_names("pilot"), 0, PILOT_DAYS)
    first = fit_model(task, HeldOut(pilots.x, pilots.y), seed).state_dict()
    return Streets(
        task, {name: tensor.numpy().copy() for name, tensor in sorted(first.items())},
        {n: rows_of([n], TEST_FROM - days, days) for n in fleet},
        {n: rows_of([n], TEST_FROM - 2 * days, days) for n in fleet},
        {n: rows_of([n], TEST_FROM, TEST_DAYS) for n in fleet},
    )  # fmt: skip
