"""What hostile devices make of what a fleet learns, behind admission and each strategy.

They know what a device knows: the weights that were sent, their own rows, the task, its strategy.
Labels flipped is data poisoning. Devices that collude send one step: against a mean their own mean
turned round, as far as admission lets it (Xie et al. 2020, arXiv 1903.03936), else Min-Max, no
further from any of theirs than those are from each other (Shejwalkar and Houmansadr 2021, NDSS).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from flwr.serverapp.strategy import FedAvg

from benchmarks.frame import Bench, Cell, Figure
from benchmarks.support.in_process import (
    Tally,
    Tensors,
    Trainees,
    every_label,
    round_seed,
    rounds,
    share,
)
from benchmarks.support.study import Study, in_two_processes, study_here
from federation.admission import NORM_FACTOR, Update, digest
from federation.aggregation import strategies
from streams.contract.task.extensions import Move
from streams.learning.clipping import is_statistic, update_norm
from tests.flower_arithmetic import aggregated

logging.getLogger("flwr").setLevel(logging.CRITICAL)  # it reports each aggregation
DEVICES, COUNTS = 10, (1, 3)
FARTHEST = 0.9 * NORM_FACTOR  # times a usual norm: the others' norms are not known exactly
PLAIN, MEANS = "Flower's FedAvg, no admission", ("Flower's FedAvg, no admission", "fedavg")
RULES = (PLAIN, "fedavg", "median", "trimmed-mean", "multi-krum")
NOBODY, FLIPPED, COLLUDE = "nobody hostile", "labels flipped", "collude"
# What becomes of the step that a device would send honestly.
STEPS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "NaN": lambda step: np.full_like(step, np.nan),
    "100-fold": lambda step: 100 * step,
    "signs flipped, 4.5-fold": lambda step: -FARTHEST * step,
}
ATTACKS = (NOBODY, *STEPS, FLIPPED, COLLUDE)


def _names(sent: Tensors) -> list[str]:
    """What is learned; statistics stay as they are: a variance below zero is refused."""
    return [n for n, value in sent.items() if value.dtype.kind == "f" and not is_statistic(n)]


def _step(update: Update, sent: Tensors) -> np.ndarray:
    """Return what was learned, (weights,) float64."""
    parts = [update.weights[n].astype(np.float64) - sent[n] for n in _names(sent)]
    return np.concatenate([part.ravel() for part in parts])


def _with_step(update: Update, sent: Tensors, step: np.ndarray) -> Update:
    weights, at = dict(update.weights), 0
    for name in _names(sent):
        old = sent[name]
        weights[name] = (old + step[at : at + old.size].reshape(old.shape)).astype(old.dtype)
        at += old.size
    return replace(update, weights=weights)


def _agreed(honest: Sequence[Update], sent: Tensors, *, means: bool) -> np.ndarray:
    steps = np.stack([_step(one, sent) for one in honest])
    mean = steps.mean(0)
    if means:
        norm = FARTHEST * min(update_norm(one.weights, sent) for one in honest)
        return np.asarray(-norm / np.linalg.norm(mean) * mean)
    back, away = -mean / np.linalg.norm(mean), mean - steps
    apart = max(float(((one - other) ** 2).sum()) for one in steps for other in steps)
    along = away @ back
    room = -along + np.sqrt(along**2 + apart - (away**2).sum(1))
    return np.asarray(mean + room.min() * back)


def _under_attack(rule: str, hostile: int, seed: int) -> dict[str, float | None]:
    """Return percent right on people held out by attack, None where Flower raises."""
    study = study_here()
    people = study.fleet[:DEVICES]
    bad, known = [person.name for person in people[-hostile:]], dict[tuple[object, ...], Update]()
    wrong = [replace(p, labels=p.labels.max() - p.labels) for p in people]
    labelled = {p.name: every_label(p, np.random.default_rng(seed)) for p in people}
    folder = study.folder / f"{rule}-{hostile}-{seed}"
    devices = Trainees(study.task, people, labelled, folder)
    flipped = Trainees(study.task, wrong, labelled, folder / "flipped")

    def trained(of: Trainees, name: str, sent: Tensors, number: int) -> Update:
        key = of is devices, name, number, digest(sent)
        if key not in known:
            known[key] = of.train(name, sent, round_seed(seed, number))
        return known[key]

    def answer(attack: str, name: str, sent: Tensors, number: int) -> Update:
        if name not in bad or attack == NOBODY:
            return trained(devices, name, sent, number)
        if attack == FLIPPED:
            return trained(flipped, name, sent, number)
        update = trained(devices, name, sent, number)
        if attack == COLLUDE:
            honest = [trained(devices, each, sent, number) for each in bad]
            return _with_step(update, sent, _agreed(honest, sent, means=rule in MEANS))
        return _with_step(update, sent, STEPS[attack](_step(update, sent)))

    return {
        attack: _learned(study, rule, devices.names, seed, lambda *a, at=attack: answer(at, *a))
        for attack in ATTACKS
    }


def _learned(
    study: Study,
    rule: str,
    names: Sequence[str],
    seed: int,
    answer: Callable[[str, Tensors, int], Update],
) -> float | None:
    task, weights, count = study.task, study.first_model(seed), study.rounds(4)
    if rule != PLAIN:
        aggregator = strategies.make(rule)
        *_, weights = rounds(task, names, weights, count, aggregator, answer, Tally())
        return share(task, weights, study.held_out)
    for number in range(1, count + 1):  # whole weights as they come
        updates = [answer(name, weights, number) for name in names]
        try:
            mean = aggregated(FedAvg(), [Move(dict(u.weights), u.samples) for u in updates])
        except Exception:  # whichever kind it is, Flower's ServerApp does not catch it
            return None
        weights = {n: np.asarray(mean[n]).astype(value.dtype) for n, value in weights.items()}
    return share(task, weights, study.held_out)


def hostile(bench: Bench) -> None:
    """One device of ten is hostile, then three of ten."""
    seeds = Study(bench.folder, bench.quick).seeds(2)
    counts, rules = bench.size((COUNTS, RULES), (COUNTS[:1], RULES[:2]))
    jobs = [(rule, count, seed) for count in counts for rule in rules for seed in seeds]
    done = in_two_processes(bench.folder, bench.quick, _under_attack, jobs)
    for count in counts:
        rows: list[list[Cell]] = []
        for rule in rules:
            found = [d for (r, c, _), d in zip(jobs, done, strict=True) if (r, c) == (rule, count)]
            row: list[Cell] = [rule]
            for attack in ATTACKS:
                some = [value for one in found if (value := one[attack]) is not None]
                row.append(Figure.of(some) if len(some) == len(found) else "Flower raises")
            rows.append(row)
        text = f"Percent right on people held out after 4 rounds; {len(seeds)} seeds."
        bench.table(f"{count} of {DEVICES} devices hostile", ["", *ATTACKS], rows, text)
