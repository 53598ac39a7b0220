"""How well the fleet's people are recognised by models that were made in different ways."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

import numpy as np

from edge_client.samples.splits import HELD_OUT
from edge_client.training.personalization import EVIDENCE
from federation.aggregation import strategies
from streams.contract.work import PERSONAL
from streams.learning import learning as torch_loops
from tests.bench.federation.loop import Tally, round_seed, rounds
from tests.bench.federation.people import SETTINGS
from tests.bench.federation.study import Size, Study, in_two_processes, study_here
from tests.bench.federation.trainees import Tensors, Trainees, own_share, right, share
from tests.bench.machine import watched
from tests.bench.report import Cell, Figure, Goal, Results, Table


class Shares(NamedTuple):
    """Percent right: of the people's own held-out segments, and of people held out."""

    own: float
    others: float | None


Measured = dict[str, list[Shares]]  # by how the model was made; one of each seed


def learning(study: Study, results: Results) -> None:
    """A table for each amount of labels."""
    jobs = [(study.size, name, seed) for name in SETTINGS for seed in study.size.seeds]
    with watched() as load:
        done = in_two_processes(study.folder, of_seed, jobs)
    for name in SETTINGS:
        measured: Measured = defaultdict(list)
        for (_, setting, _), found in zip(jobs, done, strict=True):
            for made, shares in found if setting == name else []:
                measured[made].append(shares)
        results.tables.append(_table(study, name, measured, load.others))
        if name == "all labels":
            results.goals += _goals(measured, study.size.rounds[-1])


def of_seed(size: Size, setting: str, seed: int) -> list[tuple[str, Shares]]:
    """All ways to make a model, with one seed, in a process of the pool."""
    study = study_here(size)
    found = list(_one(study, setting, seed))
    study.say(f"learning, {setting}, seed {seed}: {_text(found[-1][1])} central")
    return found


def _one(study: Study, setting: str, seed: int) -> Iterator[tuple[str, Shares]]:
    """All ways to make a model, with one seed."""
    devices = _devices(study, setting, seed)
    first = study.first_model(seed)
    yield "first model", _of_one(study, first)
    last = study.size.rounds[-1]
    for count in (1, last):
        alone = _each(devices, first, seed, devices.task.training.epochs * count)
        yield f"local only, as long as {_rounds(count)}", _of_each(study, alone)
    fleet = first
    for number, fleet in enumerate(_federated(devices, first, seed, last), 1):
        if number in study.size.rounds:
            yield f"federated, {_rounds(number)}", _of_one(study, fleet)
    copies = _personal(devices, fleet)
    yield "federated, then a copy", _of_each(study, copies)
    chosen = _where_better(devices, fleet, copies)
    yield "federated, then a copy where it is better", Shares(chosen, None)
    yield "central", _of_one(study, _central(devices, first, seed, last))


def _devices(study: Study, setting: str, seed: int) -> Trainees:
    """With few labels a device trains on fewer than a run would ask for."""
    dice = np.random.default_rng(seed)
    labelled = {person.name: SETTINGS[setting](person, dice) for person in study.fleet}
    training = replace(study.task.training, minimum_samples=1)
    return Trainees(replace(study.task, training=training), study.fleet, labelled, study.folder)


def _federated(devices: Trainees, first: Tensors, seed: int, count: int) -> Iterator[Tensors]:
    training = devices.task.training
    aggregator = strategies.make(training.strategy, training.aggregation, training.shared)
    return rounds(
        devices.task, devices.names, first, count, aggregator,
        lambda name, weights, number: devices.train(name, weights, round_seed(seed, number)),
        Tally(),
    )  # fmt: skip


def _each(devices: Trainees, weights: Tensors, seed: int, epochs: int) -> dict[str, Tensors]:
    """Each device's model, fine-tuned from the same one on its own rows."""
    return {
        name: dict(devices.train(name, weights, round_seed(seed, 0), epochs=epochs).weights)
        for name in devices.names
    }


def _personal(devices: Trainees, weights: Tensors) -> dict[str, Tensors]:
    """The first copy that each device makes of a version, as `personalization` asks for it."""
    training = devices.task.training
    asked = {
        "run": PERSONAL, "epochs": training.personal_epochs,
        "learning_rate": training.personal_learning_rate,
    }  # fmt: skip
    return {name: dict(devices.train(name, weights, 1, **asked).weights) for name in devices.names}


def _where_better(devices: Trainees, fleet: Tensors, copies: Mapping[str, Tensors]) -> float:
    """Percent of own segments right where a copy answers only if it is better, as
    edge_client.training.personalization decides it, on held-out segments with a known label.

    Each window is answered by what is better on the other ones: what is measured has no say.
    """
    answered = []
    for person in devices.people:
        base, own = (
            right(devices.task, weights, person) for weights in (fleet, copies[person.name])
        )
        held_out = person.split == HELD_OUT
        known, windows = devices.labelled[person.name][held_out], person.windows[held_out]
        for window in np.unique(windows):
            seen, asked = known & (windows != window), windows == window
            better = seen.sum() >= EVIDENCE and own[seen].sum() > base[seen].sum()
            answered.append((own if better else base)[asked])
    return 100 * float(np.concatenate(answered).mean())


def _central(devices: Trainees, first: Tensors, seed: int, count: int) -> Tensors:
    """All rows in one place: from the first model, as long as `count` rounds, as the pilot
    trains."""
    task, (segments, labels) = devices.task, devices.pooled()
    model = torch_loops.load_state(task.build_model(), first)
    torch_loops.fit(
        model, len(labels), torch_loops.segment_loss(task, model, segments, labels),
        epochs=task.training.epochs * count, batch_size=task.training.batch_size,
        learning_rate=task.training.central_learning_rate, seed=seed, optimizer="adamw",
    )  # fmt: skip
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def _of_one(study: Study, weights: Tensors) -> Shares:
    everyone = {person.name: weights for person in study.fleet}
    own = own_share(study.task, everyone, study.fleet)
    return Shares(own, share(study.task, weights, study.held_out))


def _of_each(study: Study, models: Mapping[str, Tensors]) -> Shares:
    own = own_share(study.task, models, study.fleet)
    return Shares(own, fmean(share(study.task, m, study.held_out) for m in models.values()))


def _rounds(count: int) -> str:
    return f"{count} round{'s' if count > 1 else ''}"


def _text(found: Shares) -> str:
    others = "" if found.others is None else f", people held out {found.others:.1f}"
    return f"own {found.own:.1f}{others}"


def _table(study: Study, setting: str, measured: Measured, load: float) -> Table:
    rows: list[list[Cell]] = []
    for made, found in measured.items():
        own = [shares.own for shares in found]
        others = [shares.others for shares in found if shares.others is not None]
        rows.append([made, len(found), Figure.of(own), Figure.of(others) if others else None])
    segments = int(sum((p.split == HELD_OUT).sum() for p in study.fleet))
    outside = sum(len(p.labels) for p in study.held_out)
    text = (
        f"Percent right; the median of {len(study.size.seeds)} seeds, the least and the most. "
        f"Own: {segments} segments that {len(study.fleet)} devices hold out, of all classes. "
        f"Others: {outside} segments of {len(study.held_out)} people who are not of the fleet; of "
        "models that each device has for itself, their mean. A copy is made as `Training.personal` "
        f"does it. {_LABELS[setting]} Others' load: {load:.0%}."
    )
    columns = ["", "seeds", "own", "others"]
    return Table(f"Learning, {setting}", text, columns, rows)


_LABELS = {
    "all labels": "Each device has the labels of all of its segments.",
    "five labels a class": "Each device has five labels of each class to learn from, 30 in all, "
    "which are fewer than `Training.minimum_samples` asks for (here it trains nevertheless), and "
    "at most as many among those that it holds out.",
    "labels of 3 of 6 classes": "Each device has the labels of three classes, drawn for it, also "
    "among those that it holds out; what it answers is measured on all.",
}


def _goals(measured: Measured, last: int) -> list[Goal]:
    """Beside a plain loop on the same recordings, with 22 people in the fleet."""

    def own(made: str) -> list[float]:
        return [found.own for found in measured[made]]

    def others(made: str) -> list[float]:
        return [found.others or 0.0 for found in measured[made]]

    def less(one: list[float], other: list[float]) -> Figure:
        return Figure.of([a - b for a, b in zip(one, other, strict=True)])

    federated = f"federated, {_rounds(last)}"
    alone = f"local only, as long as {_rounds(last)}"
    copy = "federated, then a copy"
    return [
        Goal(f"{federated}, own, %", Figure.of(own(federated)), at_least=86.8),
        Goal(f"{federated}, others, %", Figure.of(others(federated)), at_least=92.1),
        Goal(f"{copy}, own, %", Figure.of(own(copy)), at_least=90.1),
        Goal(f"{federated}, less local only, own, points", less(own(federated), own(alone))),
        Goal(f"{federated}, less central, own, points", less(own(federated), own("central"))),
        Goal(
            f"{federated}, less central, others, points",
            less(others(federated), others("central")),
        ),
    ]
