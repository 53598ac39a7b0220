"""Runs and rounds, and what the gate decided, in words. Pure."""

import re
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from compose.dashboard.model.observed import Observed
from compose.reports.rounds import RunSummary, history
from streams.contract.documents import RoundEvent
from streams.contract.task.metrics import CLASSES, named
from streams.fleet.wording import counted, digits, run_progress, short_runs

RUNS = 30
SIDES = (
    ("devices", "on devices"), ("held_out", "on held-out devices"),
    ("recent", "on recent windows"), ("audit", "on audit segments (not used for any decision)"),
)  # fmt: skip
SHARES = (*CLASSES, "within")  # metrics that are 0 to 1
COHORT = re.compile(r"(devices|held_out|recent)/([^/]+)")


class Side(BaseModel):
    """What was compared on the same rows: the served version, and the candidate."""

    where: str
    before: float
    after: float
    segments: int


class Cohort(BaseModel):
    """A class or a group of devices; gain: of the candidate, in the task's metric."""

    name: str
    gain: float
    segments: int


class Gate(BaseModel):
    """The gate's decision about a run's candidate; cohorts: the one that gained least first."""

    promoted: bool
    at_us: int
    reason: str
    model: str | None
    sides: list[Side]
    cohorts: list[Cohort]


class Run(BaseModel):
    """A run, its rounds, and its gate; None where it has not decided."""

    summary: RunSummary
    gate: Gate | None


class Learning(BaseModel):
    """The newest run first. is_share: whether the metric is 0 to 1 and more is better. now: what
    the current run does; None if none is under way."""

    metric: str
    is_share: bool
    now: str | None
    runs: list[Run]
    earlier: dict[str, int]


def learning(seen: Observed) -> Learning:
    view = seen.view
    decided = {e.run: e for e in view.rounds if e.kind in ("promoted", "rejected")}
    runs = history(view.rounds)[-RUNS:][::-1]
    for run in runs:  # what the gate looked at is of the last round too
        if run.rounds and run.rounds[-1].held_out is None:
            run.rounds[-1].held_out = run.gate.get("held_out")
    metric = runs[0].metric if runs else "accuracy"
    return Learning(
        metric=named(metric),
        is_share=metric in SHARES,
        now=run_progress(view.current_run),
        runs=[Run(summary=run, gate=_gate(decided.get(run.run))) for run in runs],
        earlier=dict(view.earlier),
    )


def _gate(event: RoundEvent | None) -> Gate | None:
    if event is None:
        return None
    cohorts = sorted(_cohorts(event.metrics), key=lambda cohort: cohort.gain)
    return Gate(
        promoted=event.kind == "promoted",
        at_us=event.time_us,
        reason=event.reason,
        model=event.model,
        sides=list(_sides(event.metrics)),
        cohorts=cohorts,
    )


def _sides(metrics: Mapping[str, float]) -> Iterator[Side]:
    for name, where in SIDES:
        segments = int(metrics.get(f"{name}_segments", 0))
        if segments and name in metrics and f"{name}_base" in metrics:
            before, after = metrics[f"{name}_base"], metrics[name]
            yield Side(where=where, before=before, after=after, segments=segments)


def _cohorts(metrics: Mapping[str, float]) -> Iterator[Cohort]:
    words = dict(SIDES)
    for name, gain in metrics.items():
        if (match := COHORT.fullmatch(name)) is not None:
            segments = int(metrics.get(f"{name}/segments", 0))
            where = f"{match[2]} {words[match[1]]}"
            yield Cohort(name=where, gain=gain, segments=segments)


def gate_words(gate: Gate, metric: str) -> list[str]:
    """Return the decision for a person, a sentence a line."""
    verdict = "The candidate passed the gate" if gate.promoted else "The gate refused the candidate"
    lines = [short_runs(f"{verdict}: {gate.reason}.")]
    lines += [
        f"{side.where[:1].upper()}{side.where[1:]}: {metric} {digits(side.before)} → "
        f"{digits(side.after)} on the same {counted(side.segments, 'segment')}."
        for side in gate.sides
    ]
    if gate.cohorts:
        least, most = gate.cohorts[0], gate.cohorts[-1]
        lines.append(
            f"Of {counted(len(gate.cohorts), 'cohort')} {least.name} gained least "
            f"({least.gain:+.2f} on {counted(least.segments, 'segment')}), "
            f"{most.name} most ({most.gain:+.2f})."
        )
    return lines
