"""Rollouts that are misjudged: `python -m benchmarks.rollouts`.

    taught     the teacher alone judges
    labelled   LABELLED of the events have a true label as well, by which versions are worse

Windows of HAR's real people, answered by real models: several that are as good, the first model
trained again with other seeds, and some of them with noise in their weights. Who is in the canary,
where in the recordings each device stands and how long its past is are drawn by lot; recordings
repeat. A stage is evaluated whenever each device has closed a window, until it passes or goes back,
or WINDOWS are over. There are no challengers.
"""

import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise, permutations
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.frame import Bench, Cell, Figure, main, say
from benchmarks.support.server import Server
from federation.bootstrap.dataset import segments_of_device
from federation.rollout.stage_policy import StageRules, evaluate
from federation.rollout.window_history import WindowHistory
from streams.contract.artifact import WEIGHTS
from streams.contract.window_report import ClassAgreement, Confusion, ModelWindow, WindowReport
from streams.learning.learning import (
    build_model,
    build_teacher,
    load_state,
    load_weights,
    predict,
)

STABLE, CANDIDATE, SECOND = "1-stable", "2-candidate", 1_000_000
WINDOWS = 100  # a device, of a rollout
CANARIES = ((3, (60, 120)), (5, (60, 120)), (2, (10, 30)), (1, (60, 120)))  # devices, past windows
EQUAL, LITTLE, MUCH = "as good", "worse by 5 points", "worse by 25 points"
COUNTS = {EQUAL: 400, LITTLE: 400, MUCH: 120}
LOSSES, CLOSE = {LITTLE: 0.05, MUCH: 0.25}, 0.004
SEEDS, WORSENED = range(11, 19), 4  # the constants of the test were chosen with the first of them
EVEN = 0.01  # agreements that differ by less are equally good
LABELLED = 0.3

Tensors = dict[str, np.ndarray]
Answers = list[np.ndarray]  # for each person (events,) classes


class Fleet(NamedTuple):
    """People's windows, from edge to edge: the teacher's answers, the true classes, NaN where
    unknown, each model's answers, and by which of the first two a version is worse."""

    classes: Sequence[str]
    edges: list[list[int]]
    taught: Answers
    truth: Answers
    models: dict[str, Answers]
    judge: Answers

    def agreement(self, answers: Answers) -> float:
        right = np.concatenate(self.judge)
        return float((np.concatenate(answers) == right)[np.isfinite(right)].mean())


class Job(NamedTuple):
    canary: int
    before: tuple[int, int]
    kind: str
    models: tuple[str, str]
    seed: int
    labelled: float


def taught(bench: Bench) -> None:
    _judged(bench, 0.0, "Rollouts that a teacher judges")


def labelled(bench: Bench) -> None:
    _judged(bench, LABELLED, f"Rollouts where {LABELLED:.0%} of the events have a label")


def _judged(bench: Bench, labelled: float, title: str) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    fleet, pairs = _answered(bench, by_labels=labelled > 0)
    share = bench.size(1.0, 0.02)
    jobs = [
        Job(canary, before, kind, pairs[kind][seed % len(pairs[kind])], seed, labelled)
        for canary, before in CANARIES
        for kind, count in COUNTS.items()
        for seed in range(max(1, round(share * count)))
    ]
    say(f"{len(jobs)} rollouts")
    torch.set_num_threads(1)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        ends = pool.map(partial(_rolled_out, fleet), jobs, chunksize=8)
    found: dict[tuple[int, tuple[int, int], str], list[tuple[str, int]]] = defaultdict(list)
    for job, end in zip(jobs, ends, strict=True):
        found[job[:3]].append(end)
    rows: list[list[Cell]] = []
    for (canary, (low, high), kind), each in found.items():
        shares = [
            sum(v == verdict for v, _ in each) / len(each) for verdict in ("roll-back", "go-on")
        ]
        windows = sorted(n for verdict, n in each if verdict != "wait") or [0]
        late = windows[int(0.95 * (len(windows) - 1))]
        rows.append([
            kind, canary, f"{low} to {high}", len(each), *shares, 1 - sum(shares),
            Figure.of(windows).median, late,
        ])  # fmt: skip
        wrong = "goes back" if kind == EQUAL else "passes"
        goal = f"{kind}, {wrong}: canary of {canary}, {labelled:.0%} labels"
        bench.goal(goal, shares[kind != EQUAL], at_most=0.05)
    text = (
        f"As good: pairs of {len(SEEDS)} models that differ by less than {EVEN}. Worse: "
        f"{WORSENED} of them with noise. Windows a device until the decision, if any within "
        f"{WINDOWS}."
    )
    columns = ["candidate", "canary", "past", "rollouts", "back", "on", "waits", "windows", "95 %"]
    bench.table(title, columns, rows, text)


def _answered(bench: Bench, *, by_labels: bool) -> tuple[Fleet, dict[str, list[tuple[str, str]]]]:
    """Return the windows with all models' answers, and pairs of a stable version and a candidate by
    kind."""
    server = Server(bench.place("state"))
    task, teacher = server.task, server.registry.teacher()
    assert teacher is not None
    people = [segments_of_device(task, name) for name in task.device_names("fleet")]
    judge = load_weights(build_teacher(task), teacher.files[WEIGHTS]).eval()
    edges, answers = [], []
    for person in people:
        number = person.times // int(task.window.longest_s * SECOND)
        edges.append([0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(number)])
        parts = [person.segments[a:b] for a, b in pairwise(edges[-1])]
        with torch.no_grad():
            found = [judge(torch.from_numpy(p[None]), torch.ones(1, len(p), dtype=torch.bool))
                     for p in parts]  # fmt: skip
        answers.append(torch.cat(found, 1)[0].numpy().argmax(axis=1))
    truth = [person.labels[:, 0] for person in people]
    right = truth if by_labels else answers
    fleet = Fleet(list(task.classes), edges, answers, truth, {}, right)

    def answered(weights: Tensors) -> Answers:
        model = load_state(build_model(task), weights).eval()
        return [predict(model, person.segments).argmax(axis=1) for person in people]

    agreement: dict[str, float] = {}
    pairs: dict[str, list[tuple[str, str]]] = {kind: [] for kind in COUNTS}
    for seed in SEEDS:
        base, weights = f"seed {seed}", server.fine_tuned(seed)
        fleet.models[base] = answered(weights)
        agreement[base] = fleet.agreement(fleet.models[base])
        say(f"{base}: agreement {agreement[base]:.3f}")
        for kind, lost in LOSSES.items() if seed in SEEDS[:WORSENED] else ():
            worse = _spoiled(weights, seed, answered, fleet, agreement[base] - lost)
            fleet.models[f"{base}, {kind}"] = worse
            pairs[kind].append((base, f"{base}, {kind}"))
    pairs[EQUAL] = [
        (one, other)
        for one, other in permutations(agreement, 2)
        if abs(agreement[one] - agreement[other]) < EVEN
    ]
    return fleet, pairs


def _spoiled(
    weights: Tensors, seed: int, answered: Callable[[Tensors], Answers], fleet: Fleet, aim: float
) -> Answers:
    """Return the answers with as much noise in the weights as takes the agreement to `aim`."""
    dice = np.random.default_rng(seed)
    noise = {
        name: dice.normal(0, max(float(value.std()), 1e-6), value.shape).astype(np.float32)
        for name, value in weights.items()
        if name.endswith("weight")
    }
    low, high = 0.0, 2.0
    while True:
        amount = (low + high) / 2
        mixed = {n: v + amount * noise[n] if n in noise else v for n, v in weights.items()}
        found = answered(mixed)
        gap = fleet.agreement(found) - aim
        if abs(gap) < CLOSE or high - low < 1e-3:
            return found
        low, high = (amount, high) if gap > 0 else (low, amount)


def _rolled_out(fleet: Fleet, job: Job) -> tuple[str, int]:
    """Return a rollout's verdict, and after how many windows of a device."""
    dice, people = np.random.default_rng(job.seed), range(len(fleet.edges))
    canary = {f"d{i}" for i in dice.permutation(len(people))[: job.canary]}
    begins, before = dice.integers(0, 1000, len(people)), int(dice.integers(*job.before))
    heard = WindowHistory()

    @cache
    def counts(person: int, at: int, model: str) -> ModelWindow:
        a, b = fleet.edges[person][at : at + 2]
        every = fleet.taught, fleet.truth, fleet.models[model]
        kinds, truth, said = (each[person][a:b] for each in every)
        known = (np.arange(a, b) % 10 < 10 * job.labelled) & np.isfinite(truth)
        confusion: Confusion = {}
        for true, answer in zip(truth[known].astype(int), said[known], strict=True):
            row = confusion.setdefault(fleet.classes[true], {})
            row[fleet.classes[answer]] = row.get(fleet.classes[answer], 0) + 1
        right = [int((one == other)[rows].sum()) for one, other, rows in (
            (said, kinds, slice(None)), (said, truth, known), (kinds, truth, known)
        )]  # fmt: skip
        classes = {
            fleet.classes[kind]: ClassAgreement(
                events=int((kinds == kind).sum()),
                agreeing=int((said == kinds)[kinds == kind].sum()),
            )
            for kind in np.unique(kinds)
        }
        return ModelWindow(
            events=b - a, compared=b - a, agreeing=right[0], labelled=int(known.sum()),
            correct=right[1], teacher_correct=right[2], classes=classes, truth=confusion,
        )  # fmt: skip

    def close(number: int, offered: bool) -> None:
        """Add a window of each device."""
        for person in people:
            new = offered and f"d{person}" in canary
            at = int(begins[person] + number) % (len(fleet.edges[person]) - 1)
            part = counts(person, at, job.models[new])
            heard.add(WindowReport(
                task="har", device=f"d{person}", window_us=number * SECOND,
                end_us=(number + 1) * SECOND, revision=0, events=part.events, teacher_model="1-t",
                models={CANDIDATE if new else STABLE: part},
            ), number * SECOND)  # fmt: skip

    for number in range(before):
        close(number, offered=False)
    began_us = heard.began_us = before * SECOND
    for number in range(before, before + WINDOWS):
        close(number, offered=True)
        found = evaluate(
            StageRules(max_wait_s=1e9), heard, CANDIDATE, STABLE, began_us, began_us,
            number * SECOND, canary.__contains__, {}, job.canary,
        )  # fmt: skip
        if found.verdict != "wait":
            break
    return found.verdict, number - before + 1


if __name__ == "__main__":
    main("rollouts", {"taught": taught, "labelled": labelled}, ("torch",))
