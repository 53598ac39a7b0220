"""The sensors' rows, and the ways to forecast them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from federation.admission.update import Update
from federation.aggregation import strategies
from federation.bootstrap.initial_model import fit_model
from federation.evaluation.accuracy import HeldOut
from streams.learning import learning
from streams.learning.interpolation import interpolated
from streams.segments.segmentation import segments_of
from streams.tasks import akl
from streams.tasks.pedestrians import YEAR, task
from tests.bench.federation.steering import Steering

Tensors = dict[str, np.ndarray]

DAY_US = 24 * akl.HOUR_US
BEGIN_US = int(np.datetime64(f"{YEAR}-01-01", "us").astype(np.int64))
PILOT_DAYS, TEST_FROM, TEST_DAYS = 7, 56, 28  # from the year's begin
ROUNDS = 10
COUNT, WEEK_AGO = 0, 1  # channels


@dataclass(frozen=True)
class Found:
    """RMSE in pedestrians an hour and R2 over all hours of all sensors, and the RMSE of each."""

    rmse: float
    r2: float
    by_sensor: dict[str, float]


@dataclass(frozen=True)
class Rows:
    """Hours of one or several sensors: segments (n, channels, 6), and the next hour's log count
    (n, 1)."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


@cache
def _all_of(sensor: str) -> tuple[np.ndarray, Rows]:
    """Hours since the year's begin, and the rows of a sensor's first days."""
    found = [
        (last, segment, label)
        for _, last, segment, label in segments_of(task.readings(sensor), task)
        if label is not None and last < BEGIN_US + (TEST_FROM + TEST_DAYS) * DAY_US
    ]
    hours = np.array([(last - BEGIN_US) // akl.HOUR_US for last, *_ in found])
    x, y = (np.stack([row[i] for row in found]).astype(np.float32) for i in (1, 2))
    return hours, Rows(x, y)


def rows_of(sensors: Sequence[str], first_day: int, days: int) -> Rows:
    parts = []
    for sensor in sensors:
        hours, rows = _all_of(sensor)
        chosen = (hours >= 24 * first_day) & (hours < 24 * (first_day + days))
        parts.append(Rows(rows.x[chosen], rows.y[chosen]))
    return Rows(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))


def forecasts(days: int, seed: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield (way, log counts (n, 1) by sensor for the test days), of what is known of the `days`
    days right before them; the first model knows the pilots' week."""
    fleet = task.device_names("fleet")
    tests = {name: rows_of([name], TEST_FROM, TEST_DAYS) for name in fleet}
    own = {name: rows_of([name], TEST_FROM - days, days) for name in fleet}
    yield "the hour before", {n: t.x[:, COUNT, -1:] for n, t in tests.items()}
    yield "the same hour a week before", {n: t.x[:, WEEK_AGO, -1:] for n, t in tests.items()}
    pilots = rows_of(task.device_names("pilot"), 0, PILOT_DAYS)
    first = _weights(fit_model(task, HeldOut(pilots.x, pilots.y), seed))
    yield "first model", _each(dict.fromkeys(fleet, first), tests)
    epochs = ROUNDS * task.training.epochs
    scratch = _weights(task.build_model())
    alone = {n: _trained(scratch, own[n], epochs, seed) for n in fleet}
    yield "each sensor by itself, from nothing", _each(alone, tests)
    alone = {n: _trained(first, own[n], epochs, seed) for n in fleet}
    yield "each sensor by itself, from the first model", _each(alone, tests)
    by_mean = _federated(first, own, seed)
    yield f"federated by fedavg, {ROUNDS} rounds", _each(dict.fromkeys(fleet, by_mean), tests)
    federated = _federated(first, own, seed, steered=True)
    yield f"federated, {ROUNDS} rounds", _each(dict.fromkeys(fleet, federated), tests)
    half = interpolated(first, federated, task.training.interpolation)
    yield "half of the way to that", _each(dict.fromkeys(fleet, half), tests)
    copies = {n: _trained(federated, own[n], task.training.personal_epochs, seed) for n in fleet}
    yield "federated, then a copy of each sensor's own", _each(copies, tests)
    together = rows_of(fleet, TEST_FROM - days, days)
    central = _trained(first, together, ROUNDS * task.training.epochs, seed)
    yield "central, all rows in one place", _each(dict.fromkeys(fleet, central), tests)


def _federated(first: Tensors, own: dict[str, Rows], seed: int, steered: bool = False) -> Tensors:
    """The rounds of the task; `steered`: by the strategy `scaffold`, which is the task's."""
    t, weights = task.training, first
    aggregator = strategies.make("scaffold" if steered else "fedavg", t.aggregation)
    steering = Steering([n for n, _ in task.build_model().named_parameters()], t.learning_rate)
    for number in range(ROUNDS):
        updates = []
        for name, rows in own.items():
            towards = steering.correction(name, number, weights) if steered else None
            trained = _trained(weights, rows, t.epochs, 1000 * seed + number, towards)
            if steered:
                steps = t.epochs * math.ceil(len(rows) / t.batch_size)
                steering.learned(name, number, weights, trained, steps)
            updates.append(Update(name, task.name, task.version, "1", len(rows), trained, {}))
        weights = dict(aggregator.aggregate(updates, weights))
    return weights


def _trained(
    weights: Tensors, rows: Rows, epochs: int, seed: int, correction: Tensors | None = None
) -> Tensors:
    t = task.training
    model = learning.load_state(task.build_model(), weights)
    loss = learning.segment_loss(replace(task, augment=None), model, rows.x, rows.y)
    learning.fit(
        model, len(rows), loss, epochs=epochs, batch_size=t.batch_size,
        learning_rate=t.learning_rate, seed=seed, optimizer=t.optimizer, correction=correction,
    )  # fmt: skip
    return _weights(model)


def _weights(model) -> Tensors:  # type: ignore[no-untyped-def]
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def _each(models: dict[str, Tensors], tests: dict[str, Rows]) -> dict[str, np.ndarray]:
    found = {}
    for name, rows in tests.items():
        model = learning.load_state(task.build_model(), models[name]).eval()
        found[name] = learning.predict(model, rows.x)
    return found


def measured(days: int, seed: int) -> dict[str, Found]:
    """Return how well each way forecasts."""
    fleet = task.device_names("fleet")
    truth = {n: np.expm1(rows_of([n], TEST_FROM, TEST_DAYS).y) for n in fleet}
    everything = np.concatenate(list(truth.values()))
    around = float(np.square(everything - everything.mean()).sum())
    found = {}
    for way, answers in forecasts(days, seed):
        errors = {n: np.expm1(answers[n]) - truth[n] for n in fleet}
        squared = float(np.square(np.concatenate(list(errors.values()))).sum())
        rmse = float(np.sqrt(squared / len(everything)))
        each = {n: float(np.sqrt(np.square(e).mean())) for n, e in errors.items()}
        found[way] = Found(rmse, 1 - squared / around, each)
    return found
