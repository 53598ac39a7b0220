"""The section: rollouts of equally good and of worse versions, and how many are misjudged."""

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from tests.bench.machine import watched
from tests.bench.release.rollouts.bounds import CONFIDENCE, design_effect, members, upper_bound
from tests.bench.release.rollouts.candidates import (
    BASES,
    EQUAL,
    EVEN,
    SEEDS,
    WORSE,
    Candidates,
    candidates,
)
from tests.bench.release.rollouts.simulation import WINDOWS, Fleet, Outcome, Rollout, roll_out
from tests.bench.release.stage import Stage
from tests.bench.report import Cell, Goal, Results, Table

USUAL, SHORT = (60, 120), (10, 30)
KINDS = (
    Rollout(3, USUAL), Rollout(5, USUAL), Rollout(2, USUAL), Rollout(3, SHORT), Rollout(2, SHORT),
)  # fmt: skip
COUNTS = {EQUAL: 400, **dict(zip(WORSE, (400, 80), strict=True))}  # rollouts of a kind
QUICK_SHARE = 0.05
ERROR = {EQUAL: "roll-back", **dict.fromkeys(WORSE, "go-on")}


class Job(NamedTuple):
    rollout: Rollout
    candidate: str  # one of COUNTS
    stable: str
    model: str
    seed: int


class Row(NamedTuple):
    """What came of the rollouts of one kind and candidate."""

    rollout: Rollout
    candidate: str
    outcomes: list[Outcome]

    @property
    def errs(self) -> np.ndarray:
        return np.array([one.verdict == ERROR[self.candidate] for one in self.outcomes])

    def count(self, verdict: str) -> int:
        return sum(one.verdict == verdict for one in self.outcomes)

    @property
    def effect(self) -> float:
        return design_effect(
            self.errs,
            members([one.canary for one in self.outcomes]),
            members([one.models for one in self.outcomes]),
        )


def verdicts(stage: Stage, results: Results) -> None:
    """One table; the goals are on the bounds."""
    found = candidates(stage.people, quick=stage.quick)
    kinds = KINDS[:1] if stage.quick else KINDS
    planned = list(jobs(found, kinds, QUICK_SHARE if stage.quick else 1.0))
    with watched(stage.kafka.pid) as load:
        outcomes = _run(found, planned)
    rows = _rows(planned, outcomes)
    largest = max(row.effect for row in rows)
    bounds = [bound(row, largest) for row in rows]
    results.tables.append(_table(found, rows, bounds, largest, load.others))
    for candidate, text in (
        (EQUAL, "an equal version rolled back"),
        (next(iter(WORSE)), "worse by 5 points and passed"),
    ):
        for row, (_, upper) in zip(rows, bounds, strict=True):
            if row.candidate == candidate:
                left = f"{row.count('wait') / len(row.outcomes):.0%} undecided"
                title = f"{text}, share, upper bound, {row.rollout.name} ({left})"
                results.goals.append(Goal(title, upper, at_most=0.05))


def jobs(found: Candidates, kinds: Sequence[Rollout], share: float) -> Iterator[Job]:
    """All rollouts; the pairs of models take turns."""
    for kind in kinds:
        for name, count in COUNTS.items():
            pairs = found.pairs[name]
            for seed in range(round(share * count)):
                yield Job(kind, name, *pairs[seed % len(pairs)], seed)


def _rows(planned: Sequence[Job], outcomes: Sequence[Outcome]) -> list[Row]:
    rows: dict[tuple[Rollout, str], Row] = {}
    for job, outcome in zip(planned, outcomes, strict=True):
        at = job.rollout, job.candidate
        rows.setdefault(at, Row(*at, [])).outcomes.append(outcome)
    return list(rows.values())


def bound(row: Row, otherwise: float) -> tuple[float, float]:
    """Return the design effect, `otherwise` where no error shows one, and the upper bound of the
    share that is misjudged."""
    errs = row.errs
    effect = row.effect if errs.any() else otherwise
    return effect, upper_bound(int(errs.sum()), len(errs), effect)


_fleet: Fleet


def _begin(windows: Mapping[str, list], classes: tuple[str, ...]) -> None:  # type: ignore[type-arg]
    global _fleet
    torch.set_num_threads(1)
    _fleet = Fleet(windows, classes)


def _one(job: Job) -> Outcome:
    return roll_out(_fleet, job.rollout, job.stable, job.model, job.seed)


def _run(found: Candidates, planned: Sequence[Job]) -> list[Outcome]:
    """In a process for each core."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(os.cpu_count(), _begin, (found.windows, found.classes)) as pool:
        return pool.map(_one, planned, chunksize=8)


def _table(
    found: Candidates,
    rows: Sequence[Row],
    bounds: Sequence[tuple[float, float]],
    largest: float,
    others: float,
) -> Table:
    cells: list[list[Cell]] = []
    for row, (effect, upper) in zip(rows, bounds, strict=True):
        windows = sorted(one.windows for one in row.outcomes)
        decided = len(row.outcomes) - row.count("wait")
        cells.append([
            row.candidate, row.rollout.name, len(windows), found.agreement[row.candidate],
            row.count("roll-back"), row.count("go-on"), row.count("wait"), float(row.errs.mean()),
            float(row.errs.sum()) / decided if decided else None, upper, effect, median(windows),
            windows[int(0.95 * (len(windows) - 1))],
        ])  # fmt: skip
    text = (
        "Real people's windows of HAR, answered by real models; who is in the canary, where in the "
        "recordings each device stands and how long its past is are drawn by lot. As good: each "
        f"two of {len(SEEDS)} models that are trained again, of the first model with other seeds, "
        f"whose agreements differ by less than {EVEN:.2f} ({len(found.pairs[EQUAL])} pairs). "
        f"Worse: {BASES} of them with noise in their weights, each other noise. At most 0.05 of "
        "versions that are as good may go back, and of those that lose 5 points pass, in a whole "
        f"rollout: these are misjudged. The bound is one-sided, {CONFIDENCE:.0%}, with people and "
        "models as clusters: so many rollouts count as one as the design effect says; where "
        f"nothing was misjudged, the largest one of the table ({largest:.1f}). A rollout ends "
        f"undecided after {WINDOWS} windows a device; what is undecided is not misjudged, so a "
        "goal may be met because little was decided: its row says how much, and what share of the "
        "decided was wrong. "
        f"Others' load: {others:.0%}."
    )
    columns = [
        "candidate", "canary", "rollouts", "agreement", "went back", "passed", "undecided",
        "misjudged, share", "of the decided", "upper bound", "design effect", "windows, median",
        "windows, 95 %",
    ]  # fmt: skip
    return Table("Rollouts that are judged, and misjudged", text, columns, cells)
