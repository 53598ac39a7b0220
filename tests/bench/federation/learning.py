"""How well the fleet's people are recognised by models that were made in different ways."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import NamedTuple

import numpy as np

from edge_client.inference import choice
from edge_client.samples.splits import HELD_OUT
from edge_client.training.personalization import EVIDENCE
from federation.aggregation import strategies
from federation.evaluation import step
from federation.evaluation.device_metrics import DeviceResult
from federation.evaluation.paired import Paired
from streams.contract.task import Task
from streams.contract.work import PERSONAL
from streams.learning import learning as torch_loops
from streams.learning.interpolation import interpolated
from tests.bench.federation.loop import Tally, round_seed, rounds
from tests.bench.federation.people import SETTINGS
from tests.bench.federation.study import Size, Study, in_two_processes, study_here
from tests.bench.federation.trainees import Tensors, Trainees, answers, right, share
from tests.bench.machine import watched
from tests.bench.report import Cell, Figure, Goal, Results, Table

WORSE = 1.0  # points


class Shares(NamedTuple):
    """Percent right: of all people's own held-out segments, of the person with the least, and of
    people held out; how many people are worse off than with the first model, by more than a
    point, and the change of the one who is worst off."""

    own: float
    least: float
    worse: float
    worst: float
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
    before = {p.name: right(study.task, first, p) for p in study.fleet}
    of_each = partial(_of_each, study, before)
    of_one = partial(_of_one, study, before)
    yield "first model", of_one(first)
    last = study.size.rounds[-1]
    for count in (1, last):
        alone = _each(devices, first, seed, devices.task.training.epochs * count)
        yield f"local only, as long as {_rounds(count)}", of_each(alone)
    fleet = first
    for number, fleet in enumerate(_federated(devices, first, seed, last), 1):
        if number in study.size.rounds:
            yield f"federated, {_rounds(number)}", of_one(fleet)
            half = interpolated(first, fleet, study.task.training.interpolation)
            yield f"half of the way, {_rounds(number)}", of_one(half)
    offered = half if _goes_half(devices, first, half, fleet) else fleet
    yield "what the run offers", of_one(offered)
    kept = _answered(devices, offered, dict.fromkeys(devices.names, first), _keeps, first)
    yield "the same, where a device chooses", shares_of(kept, before, None)
    copies = _personal(devices, offered)
    yield "the same, then a copy", of_each(copies)
    chosen = _answered(devices, offered, copies, _copy_is_better, first)
    yield "the same, then a copy where it is better", shares_of(chosen, before, None)
    yield "central", of_one(_central(devices, first, seed, last))


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


Known = np.ndarray  # (n,) bool: right or not on held-out segments whose label the device knows


def _answered(
    devices: Trainees,
    offered: Tensors,
    instead: Mapping[str, Tensors],
    takes: Callable[[Task, Known, Known], bool],
    first: Tensors,
) -> dict[str, np.ndarray]:
    """Which own segments are right, by device, where it answers with something else than what is
    offered if `takes` says so, by the right ones of what is offered and of the other.

    Each window is answered by what the other windows say: what is measured has no say. `first` has
    answered what the device has seen, which tells its classes.
    """
    answered = {}
    for person in devices.people:
        held_out = person.split == HELD_OUT
        known, windows = devices.labelled[person.name][held_out], person.windows[held_out]
        base, other = (
            right(devices.task, weights, person) for weights in (offered, instead[person.name])
        )
        classes = answers(devices.task, first, person)
        found = base.copy()
        for window in np.unique(windows):
            seen, asked = known & (windows != window), windows == window
            covered = np.isin(classes, person.classes[held_out][seen]).mean() >= choice.COVERED
            if covered and takes(devices.task, base[seen], other[seen]):
                found[asked] = other[asked]
        answered[person.name] = found
    return answered


def _copy_is_better(_task: Task, base: Known, own: Known) -> bool:
    """As edge_client.training.personalization decides it."""
    return len(own) >= EVIDENCE and own.sum() > base.sum()


def _keeps(task: Task, offered: Known, old: Known) -> bool:
    return choice.compare(task, 1.0 - old, 1.0 - offered).keeps(keeping=False)


def _goes_half(devices: Trainees, first: Tensors, half: Tensors, whole: Tensors) -> bool:
    """Whether a run offers half of the way, by what devices know alone."""
    found: tuple[dict[str, DeviceResult], ...] = ({}, {})
    for person in devices.people:
        known = devices.labelled[person.name][person.split == HELD_OUT]
        base, *both = (right(devices.task, w, person)[known] for w in (first, half, whole))
        for results, new in zip(found, both, strict=True):
            gained, lost = int((new & ~base).sum()), int((base & ~new).sum())
            results[person.name] = DeviceResult(Paired(len(base), int(base.sum()), gained, lost))
    return not step.choose(devices.task, *found, Paired()).whole


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


def _of_one(study: Study, before: Mapping[str, np.ndarray], weights: Tensors) -> Shares:
    found = {p.name: right(study.task, weights, p) for p in study.fleet}
    return shares_of(found, before, share(study.task, weights, study.held_out))


def _of_each(
    study: Study, before: Mapping[str, np.ndarray], models: Mapping[str, Tensors]
) -> Shares:
    found = {p.name: right(study.task, models[p.name], p) for p in study.fleet}
    others = fmean(share(study.task, m, study.held_out) for m in models.values())
    return shares_of(found, before, others)


def shares_of(
    found: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray], others: float | None
) -> Shares:
    each = {name: 100 * float(rows.mean()) for name, rows in found.items()}
    changes = [each[name] - 100 * float(rows.mean()) for name, rows in before.items()]
    worse = float(sum(change < -WORSE for change in changes))
    own = 100 * float(np.concatenate(list(found.values())).mean())
    return Shares(own, min(each.values()), worse, min(changes), others)


def _rounds(count: int) -> str:
    return f"{count} round{'s' if count > 1 else ''}"


def _text(found: Shares) -> str:
    others = "" if found.others is None else f", people held out {found.others:.1f}"
    return f"own {found.own:.1f}{others}"


def _table(study: Study, setting: str, measured: Measured, load: float) -> Table:
    rows: list[list[Cell]] = []
    for made, found in measured.items():
        others = [shares.others for shares in found if shares.others is not None]
        figures = [Figure.of([shares[at] for shares in found]) for at in range(4)]
        rows.append([made, len(found), *figures, Figure.of(others) if others else None])
    segments = int(sum((p.split == HELD_OUT).sum() for p in study.fleet))
    outside = sum(len(p.labels) for p in study.held_out)
    text = (
        f"Percent right; the median of {len(study.size.seeds)} seeds, the least and the most. "
        f"Own: {segments} segments that {len(study.fleet)} devices hold out, of all classes. "
        f"Others: {outside} segments of {len(study.held_out)} people who are not of the fleet; of "
        "models that each device has for itself, their mean. A copy is made as `Training.personal` "
        "does it, of what the run offers; chosen is by the labels of other windows than the one "
        "that is answered. Least: the device with the least. Worse: devices that are more than a "
        "point worse off than with the first model; worst: the change of the one that is worst "
        "off, in points. "
        f"{_LABELS[setting]} Others' load: {load:.0%}."
    )
    columns = ["", "seeds", "own", "least", "worse", "worst", "others"]
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
    offered, copy = "what the run offers", "the same, then a copy"
    return [
        Goal(f"{federated}, own, %", Figure.of(own(federated)), at_least=86.8),
        Goal(f"{federated}, others, %", Figure.of(others(federated)), at_least=92.1),
        Goal(f"{copy}, own, %", Figure.of(own(copy)), at_least=90.1),
        Goal(
            f"{offered}, devices worse by more than a point",
            Figure.of([found.worse for found in measured[offered]]),
            at_most=0,
        ),
        Goal(f"{federated}, less local only, own, points", less(own(federated), own(alone))),
        Goal(f"{federated}, less central, own, points", less(own(federated), own("central"))),
        Goal(
            f"{federated}, less central, others, points",
            less(others(federated), others("central")),
        ),
    ]
