"""What devices gain from each other on the built-in tasks: `python -m benchmarks.gains`.

    har          people with all labels or a few: percent of their held-out segments right
    pedestrians  street sensors with 7 or 28 days: RMSE over the next 28, pedestrians an hour
    flights      desks of airlines with 45 days: average precision over the next 15, %

Without processes; what a round admits and aggregates, what a run offers, and when an adapter
answers, is the product's own code. Each way begins from the first model, which knows the pilots.
"""

import hashlib
import logging
import multiprocessing
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from benchmarks.frame import Bench, Cell, Figure, main
from benchmarks.support.fleets import (
    FLEETS,
    Fleet,
    Models,
    Result,
    Rows,
    Tensors,
    together,
)
from edge_client.inference import choice
from edge_client.samples.table import ALIGNED, LABELLED
from edge_client.training import trainer_process
from edge_client.training.adapter_fit import Fitter, cross_validated, evidence_of
from edge_client.training.own_weights import EPOCHS, SHARE_OF_RATE
from federation.admission import Update
from federation.bootstrap.first_models import LEARNING_RATE
from federation.evaluation import device_metrics, evidence
from federation.evaluation.paired import Paired
from federation.rounds import strategies
from federation.rounds.collector import Reply
from federation.rounds.event_log import EventLog
from federation.rounds.update_intake import UpdateIntake
from streams.contract.task import load_task
from streams.contract.task.metrics import metric_of
from streams.contract.weights import payload
from streams.contract.work import TrainerJob, WorkRequest
from streams.learning import learning
from streams.learning.input_adapter import InputAdapter
from streams.learning.updates import SHARE, interpolated

ROUNDS, PROCESSES, BASE = 10, 2, "1"
FIRST, ALONE, FEDERATED = "first model", "each device alone", "federated by FedAvg"
OFFERED, COPY, CENTRAL = "what the run offers", "then a copy", "central, all rows in one place"
ADAPTER = "then behind an adapter"
ORACLE = "an oracle: of each device's, after any round, the best by the truth"


RULES: dict[str, dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "pedestrians": {"the hour before": lambda x: x[:, 0, -1:],
                    "the same hour a week before": lambda x: x[:, 1, -1:]},
    "flights": {"rule: by the delay of the desk's last departures":
                lambda x: np.stack([-x[:, 1, -1], x[:, 1, -1]], axis=1)},
}  # fmt: skip


def ways(fleet: Fleet, seed: int, count: int) -> Iterator[tuple[str, Result]]:
    """Yield what each way comes to."""
    first, t = fleet.first, fleet.task.training
    for name, rule in RULES.get(fleet.task.name, {}).items():
        yield name, fleet.measure({n: rule(rows.x) for n, rows in fleet.tests.items()})
    yield FIRST, fleet.of_all(first)
    own = alone(fleet, first, seed, t.epochs * count)
    yield ALONE, fleet.of_each(own, {})
    after = list(rounds(fleet, seed, count))
    learned = after[-1]
    yield FEDERATED, fleet.of_all(learned)
    if not fleet.streams:
        shared = [dict.fromkeys(fleet.rows, weights) for weights in after]
        copies = [alone(fleet, weights, 1, EPOCHS, SHARE_OF_RATE) for weights in after]
        yield ORACLE, fleet.of_each(best(fleet, [own, *shared, *copies]), {})
    if fleet.known:
        half = interpolated(first, learned, SHARE)
        offered = learned if goes_all(fleet, half, learned) else half
        yield OFFERED, fleet.of_all(offered)
        yield COPY, fleet.of_each(alone(fleet, offered, 1, EPOCHS, SHARE_OF_RATE), {})
    if fleet.streams:
        same = dict.fromkeys(fleet.rows, offered)
        yield ADAPTER, fleet.of_each(same, adapters(fleet, offered))
    everything = together(fleet.rows.values())
    model = fit(fleet, first, everything, seed, t.epochs * count, LEARNING_RATE, "adamw")
    yield CENTRAL, fleet.of_all(model)


def fit(
    fleet: Fleet, start: Tensors, rows: Rows, seed: int, epochs: int, rate: float,
    optimizer: str = "sgd",
) -> Tensors:  # fmt: skip
    """Return what training on rows makes of weights."""
    task, model = fleet.task, learning.load_state(learning.build_model(fleet.task), start)
    learning.fit(
        model, len(rows), learning.segment_loss(task, model, rows.x, rows.y), epochs=epochs,
        batch_size=task.training.batch_size, learning_rate=rate, seed=seed, optimizer=optimizer,
    )  # fmt: skip
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def alone(fleet: Fleet, start: Tensors, seed: int, epochs: int, pace: float = 1.0) -> Models:
    """Return each device's model, fine-tuned on its own rows; `pace` times the task's rate."""
    rate = pace * fleet.task.training.learning_rate
    return {name: fit(fleet, start, rows, seed, epochs, rate) for name, rows in fleet.rows.items()}


def best(fleet: Fleet, given: Sequence[Models]) -> Models:
    """Return for each device the one of its models that does best where it is measured."""
    sign = 1 if metric_of(fleet.task).greater_is_better else -1
    each = [fleet.of_each(models, {}).each for models in given]
    return {
        name: given[max(range(len(given)), key=lambda i: sign * each[i][name])][name]
        for name in fleet.rows
    }


class Silent:
    """A run's event log that keeps nothing."""

    def publish(self, kind: str, **_fields: Any) -> None: ...


def rounds(fleet: Fleet, seed: int, count: int) -> Iterator[Tensors]:
    """Yield the shared weights after each round; those before where too few were admitted."""
    task, t, names, weights = fleet.task, fleet.task.training, list(fleet.rows), fleet.first
    aggregator = strategies.make("fedavg")
    intake = UpdateIntake(task, cast(EventLog, Silent()), clip=aggregator.clip)
    for number in range(1, count + 1):
        about = {"round": number, "rounds": count, "base": BASE}
        digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()  # as federation.rounds.run
        sent = payload.round_weights(weights, t.payload)
        answers = []
        for node in intake.begin_round(range(len(names)), sent, about):
            name, rows = names[node], fleet.rows[names[node]]
            own = int.from_bytes(digest[:4])
            trained = fit(fleet, sent, rows, own, t.epochs, t.learning_rate)
            block = payload.encode_update(trained, sent, t.payload)
            update = payload.restore_update(payload.unpack(block), sent)
            made = Update(name, task.name, task.version, BASE, len(rows), update)
            answers.append(Reply(node, name, made, round=number))
        updates = intake.admit(answers, {}, about)
        if len(updates) >= aggregator.least:
            weights = aggregator.aggregate(updates, weights)
        yield weights


def goes_all(fleet: Fleet, half: Tensors, whole: Tensors) -> bool:
    """Return whether a run offers all of what it learned, by what devices know alone."""
    task, found = fleet.task, list[dict[str, device_metrics.DeviceResult]]()
    for weights in (half, whole):
        results = {
            name: device_metrics.read(task, trainer_process.compare(
                task, (fleet.outputs(fleet.first, rows.x), fleet.outputs(weights, rows.x)), rows.y
            ))
            for name, rows in fleet.known.items()
        }  # fmt: skip
        found.append({name: each for name, each in results.items() if each is not None})
    return evidence.choose_step(task, found[0], found[1], Paired()).whole


def adapters(fleet: Fleet, weights: Tensors) -> dict[str, InputAdapter]:
    """Return the input adapters behind which devices answer, fitted on their own rows and chosen by
    their own labels, as edge_client.inference.challenger does."""
    task = fleet.task
    request = WorkRequest(
        op="adapt", run="bench", round=0, task=task.name, task_version=task.version, base=BASE,
        epochs=1, batch_size=1, learning_rate=1.0, time_budget_s=3600.0,
    )  # fmt: skip
    job = TrainerJob(device="", request=request, samples="", stop="/nonexistent")
    model = learning.load_state(learning.build_model(task), weights)
    fitter, found = Fitter(task, model, job), {}
    for name, (stream, last_us) in fleet.streams.items():
        told = np.isfinite(stream.y).all(axis=1)
        rows = np.sort(np.concatenate([
            np.flatnonzero(told)[-LABELLED:], np.flatnonzero(~told)[-ALIGNED:],
        ]))  # fmt: skip
        x, y, times = stream.x[rows], stream.y[rows], last_us[rows]
        adapter, shown = cross_validated(task, model, fitter, x, y, times // task.window_us % 4)
        columns = evidence_of(task, shown, y[shown.judged])
        compared = choice.compare(
            task, columns["loss"], columns["base_loss"], times[shown.judged],
            columns["less_surprise"],
        )  # fmt: skip
        if choice.adapter_answers(compared, drifting=False):
            found[name] = adapter
    return found


def _of_seed(name: str, setting: str, seed: int, count: int) -> dict[str, Result]:
    """Return what all ways come to with one seed, in a process of the pool."""
    return dict(ways(FLEETS[name][0](setting, seed), seed, count))


def _begin() -> None:
    torch.set_num_threads(1)
    logging.getLogger("federation").setLevel(logging.CRITICAL)


def gains(name: str, bench: Bench) -> None:
    settings, seeds = FLEETS[name][1][: bench.size(None, 1)], bench.size(bench.asked.seeds, 1)
    jobs = [(name, setting, seed, bench.size(ROUNDS, 2))
            for setting in settings for seed in range(1, seeds + 1)]  # fmt: skip
    with multiprocessing.get_context("spawn").Pool(PROCESSES, _begin) as pool:
        done = pool.starmap(_of_seed, jobs, chunksize=1)
    for setting in settings:
        _report(bench, name, setting, [one for job, one in zip(jobs, done, strict=True)
                                       if job[1] == setting])  # fmt: skip


UNITS = {"har": "% right", "pedestrians": "RMSE", "flights": "average precision, %"}
WORSE = {"har": 1.0}  # points that a device may lose without being called worse
# task and setting: what is aimed at, the way and the column, at least, at most
GOALS: dict[tuple[str, str], Sequence[tuple[str, str, float | None, float | None]]] = {
    ("har", "all labels"): [
        (FEDERATED, "together", 86.8, None), (FEDERATED, "others", 92.1, None),
        (COPY, "together", 90.1, None), (ADAPTER, "together", 96.0, None),
        (ADAPTER, "worse than at first", None, 0), (OFFERED, "worse than at first", None, 0),
    ],
    ("har", "five labels a class"): [
        (ADAPTER, "together", 94.0, None), (ADAPTER, "worse than at first", None, 0),
    ],
    ("pedestrians", "7 days"): [(FEDERATED, "better than central", 7, None),
                                (FEDERATED, "better than alone", 12, None)],
    ("pedestrians", "28 days"): [(FEDERATED, "better than alone", 12, None)],
    ("flights", "45 days"): [(FEDERATED, "better together than alone by", 0.0, None)],
}  # fmt: skip


def _report(bench: Bench, name: str, setting: str, found: Sequence[Mapping[str, Result]]) -> None:
    sign = 1 if metric_of(load_task(f"streams.tasks.{name}:task")).greater_is_better else -1

    def better(one: Mapping[str, Result], way: str, than: str, by: float = 0.0) -> int:
        pairs = ((one[way].each[n], one[than].each[n]) for n in one[than].each)
        return sum(sign * (a - b) > by for a, b in pairs)

    columns: dict[str, Callable[[Mapping[str, Result], str], float | None]] = {
        "together": lambda one, way: one[way].together,
        "mean of the devices": lambda one, way: float(np.mean(list(one[way].each.values()))),
        "better than alone": lambda one, way: better(one, way, ALONE),
        "better than central": lambda one, way: better(one, way, CENTRAL),
        "worse than at first": lambda one, way: better(one, FIRST, way, WORSE.get(name, 0.0)),
        "others": lambda one, way: one[way].others,
    }

    def figure(column: str, way: str) -> Figure | None:
        values = [value for one in found if (value := columns[column](one, way)) is not None]
        return Figure.of(values) if values else None

    rows: list[list[Cell]] = [[way, *(figure(each, way) for each in columns)] for way in found[0]]
    devices = len(found[0][FIRST].each)
    text = f"{devices} devices, {len(found)} seeds; others: devices of no fleet."
    bench.table(f"{name}, {setting}: {UNITS[name]}", ["", *columns], rows, text)
    columns["better together than alone by"] = (
        lambda one, way: sign * (one[way].together - one[ALONE].together)
    )  # fmt: skip
    for way, column, least, most in GOALS.get((name, setting), ()):
        measured = figure(column, way)
        assert measured is not None
        bench.goal(f"{name}, {setting}: {way}, {column}", measured, at_least=least, at_most=most)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=3)


if __name__ == "__main__":
    main("gains", {name: partial(gains, name) for name in FLEETS}, ("torch", "numpy"), _options)
