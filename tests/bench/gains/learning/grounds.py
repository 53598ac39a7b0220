"""The two built-in data sets as fleets that learn in one process: what each device learns from,
what it knows of the rows that it holds out, and how well a model does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from edge_client.samples.splits import HELD_OUT, TRAIN
from edge_client.training import trainer_process
from federation.bootstrap.initial_model import fit_model
from federation.evaluation import accuracy, device_metrics, step
from federation.evaluation.accuracy import HeldOut
from federation.evaluation.device_metrics import DeviceResult
from federation.evaluation.paired import Paired
from streams.contract.task import Task
from streams.contract.task.metrics import gain, metric_of
from streams.learning import learning
from streams.tasks import pedestrians
from tests.bench.federation.learning import shares_of
from tests.bench.federation.people import SETTINGS, Person
from tests.bench.federation.study import Study
from tests.bench.federation.trainees import Tensors, right, share
from tests.bench.pedestrians.ways import PILOT_DAYS, TEST_DAYS, TEST_FROM, rows_of

Models = Mapping[str, Tensors]  # by device
Figures = tuple[float | None, ...]


@dataclass(frozen=True)
class Rows:
    """Segments (n, channels, samples) and labels (n, label_size); `soft` (n, outputs) has the
    teacher's outputs where the label is the teacher's, NaN where it is true; `weight` (n,) is what
    a row weighs in the loss."""

    x: np.ndarray
    y: np.ndarray
    soft: np.ndarray | None = None
    weight: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Ground:
    """rows: what each device learns from; known: rows that it holds out, with labels that it
    knows; deciding: rows of devices that are in no fleet, by which rounds may be ended."""

    task: Task
    first: Tensors
    rows: Mapping[str, Rows]
    known: Mapping[str, Rows]
    deciding: Rows

    def figures(self, models: Models, weights: Tensors) -> Figures:
        """Return how well each device's model does, and `weights` on devices of no fleet."""
        raise NotImplementedError

    def score(self, weights: Tensors) -> float:
        """Return how much better than the first model on the deciding rows, by the task's
        metric."""
        base, found = (
            accuracy.score(self.task, self._outputs(each, self.deciding), self.deciding.y).value
            for each in (self.first, weights)
        )
        return float(gain(metric_of(self.task), base, found))

    def goes_all(self, half: Models, whole: Models) -> bool:
        """Return whether a run offers all of what it learned, by what devices know alone."""
        found: list[dict[str, DeviceResult]] = []
        for models in (half, whole):
            each = {name: self._compared(name, models[name]) for name in self.rows}
            found.append({name: result for name, result in each.items() if result is not None})
        return step.choose(self.task, found[0], found[1], Paired()).whole

    def loss(self, weights: Tensors, name: str) -> float:
        """Return the mean loss on the rows that a device holds out; 0 if it has none."""
        rows = self.known[name]
        if not len(rows):
            return 0.0
        outputs = torch.from_numpy(self._outputs(weights, rows))
        labels = torch.from_numpy(rows.y)
        return float(learning.loss_per_row(self.task, outputs, labels).mean())

    def _compared(self, name: str, weights: Tensors) -> DeviceResult | None:
        models = [learning.load_state(self.task.build_model(), w) for w in (self.first, weights)]
        rows = self.known[name]
        said = trainer_process.compare(self.task, models[0], models[1], rows.x, rows.y)
        return device_metrics.read(self.task, said)

    def _outputs(self, weights: Tensors, rows: Rows) -> np.ndarray:
        return learning.predict(learning.load_state(self.task.build_model(), weights), rows.x)


@dataclass(frozen=True)
class People(Ground):
    """The built-in task's people; figures: own, least, worse, worst, others, as
    tests.bench.federation.learning has them."""

    study: Study
    labelled: Mapping[str, np.ndarray]  # (n,) bool by name: the rows with a true label
    before: dict[str, np.ndarray] = field(default_factory=dict)

    def figures(self, models: Models, weights: Tensors) -> Figures:
        fleet = self.study.fleet
        if not self.before:
            self.before.update({p.name: right(self.task, self.first, p) for p in fleet})
        found = {p.name: right(self.task, models[p.name], p) for p in fleet}
        others = share(self.task, weights, self.study.held_out)
        return tuple(shares_of(found, self.before, others))


def people(study: Study, setting: str, seed: int) -> People:
    """Return the fleet with as many labels as the setting gives; see people.SETTINGS."""
    dice = np.random.default_rng(seed)
    labelled = {person.name: SETTINGS[setting](person, dice) for person in study.fleet}

    def of(split: int) -> dict[str, Rows]:
        chosen = {p.name: labelled[p.name] & (p.split == split) for p in study.fleet}
        return {p.name: _rows(p, chosen[p.name]) for p in study.fleet}

    segments = np.concatenate([person.segments for person in study.held_out])
    labels = np.concatenate([person.labels for person in study.held_out])
    decides, _ = HeldOut(segments, labels).audited(study.task)
    return People(
        study.task, study.first_model(seed), of(TRAIN), of(HELD_OUT),
        Rows(decides.segments, decides.labels), study, labelled,
    )  # fmt: skip


def _rows(person: Person, chosen: np.ndarray) -> Rows:
    return Rows(person.segments[chosen], person.labels[chosen])


@dataclass(frozen=True)
class Streets(Ground):
    """The sensors of the task `pedestrians`; figures: RMSE in pedestrians an hour over all hours
    of the test, sensors that are worse than with the first model, and the worst change of a
    sensor's RMSE in percent (more than 0 is worse)."""

    tests: Mapping[str, Rows]

    def figures(self, models: Models, weights: Tensors) -> Figures:
        errors = {n: self._errors(n, models[n]) for n in self.tests}
        before = {n: self._errors(n, self.first) for n in self.tests}
        changes = [100 * (_rms(errors[n]) / _rms(before[n]) - 1) for n in self.tests]
        worse = float(sum(change > 0 for change in changes))
        return _rms(np.concatenate(list(errors.values()))), worse, max(changes)

    def _errors(self, name: str, weights: Tensors) -> np.ndarray:
        rows = self.tests[name]
        return np.asarray(np.expm1(self._outputs(weights, rows)) - np.expm1(rows.y))


def streets(days: int, seed: int) -> Streets:
    """Return the sensors with the `days` days before the test; they hold out as many before
    those."""
    task = pedestrians.task
    fleet, others = task.device_names("fleet"), task.device_names("held-out")
    pilots = _hours(task.device_names("pilot"), 0, PILOT_DAYS)
    first = fit_model(task, HeldOut(pilots.x, pilots.y), seed).state_dict()
    return Streets(
        task, {name: tensor.numpy().copy() for name, tensor in sorted(first.items())},
        {n: _hours([n], TEST_FROM - days, days) for n in fleet},
        {n: _hours([n], TEST_FROM - 2 * days, days) for n in fleet},
        _hours(others, TEST_FROM - days, days),
        {n: _hours([n], TEST_FROM, TEST_DAYS) for n in fleet},
    )  # fmt: skip


def _hours(sensors: Sequence[str], first_day: int, days: int) -> Rows:
    found = rows_of(sensors, first_day, days)
    return Rows(found.x, found.y)


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.square(errors.astype(np.float64)).mean()))
