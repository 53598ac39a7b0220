"""Federated runs and their rounds, and what the pages of learning and of releases show, as values
for their templates. Pure."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compose.console.history import SLOT_S
from compose.console.pages import PALETTE, Points, chart, colour, metric_title, series, share_axis
from compose.console.watch import Moment
from compose.reports.status import release_line
from federation.rollout.stage_policy import StageRules
from streams.contract.documents import Document, RoundEvent
from streams.contract.task.metrics import CLASSES, named, top
from streams.contract.window_metrics import Judgement, value_of
from streams.fleet.agreement import Evidence
from streams.fleet.wording import counted, decision_text, digits, run_progress, short_runs

RUNS, ROUNDS, DECISIONS = 30, 60, 60
SHARES = (*CLASSES, "within")  # metrics that are 0 to 1
LEAST, MOST = 1e-3, 1e3  # of odds that are drawn

# --- runs -----------------------------------------------------------------------------------------


@dataclass
class RoundSummary:
    """One round; an unknown value is None. Figures are in the task's metric."""

    number: int
    nodes: int | None = None
    admitted: int = 0
    failed: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # by reason
    held_out: float | None = None
    devices_before: float | None = None
    seconds: float | None = None
    epsilon: float | None = None  # privacy cost of the task's aggregates up to this round
    outcome: str = "not finished"


@dataclass
class RunSummary:
    """One run; `gate` has the metrics of the last evaluation."""

    run: str
    began_us: int
    resumed_from: str = ""
    base: str = ""
    metric: str = "accuracy"
    requested: str = ""
    model: str | None = None
    outcome: str = "not finished"
    gate: dict[str, float] = field(default_factory=dict)
    rounds: list[RoundSummary] = field(default_factory=list)


def history(events: Iterable[RoundEvent]) -> list[RunSummary]:
    """Return the runs in the order of their start; a repeated event counts once."""
    unique = {event.encode(): event for event in events if event.run}  # "asked" has no run
    runs: dict[str, RunSummary] = {}
    for event in sorted(unique.values(), key=lambda event: event.time_us):
        run = runs.setdefault(event.run, RunSummary(event.run, event.time_us))
        run.base = event.base or run.base
        run.metric = event.metric
        run.resumed_from = event.resumed_from or run.resumed_from
        _add(run, event)
    for run in runs.values():
        before = runs.get(run.resumed_from)
        if before is not None and before.outcome == "not finished":
            before.outcome = f"resumed by run {run.run}"
    return list(runs.values())


def _add(run: RunSummary, event: RoundEvent) -> None:
    if event.kind == "requested":
        run.requested = event.reason
    elif event.kind == "promoted":
        run.model = event.model
    elif event.kind == "finished":
        run.outcome = f"promoted {run.model}" if run.model else event.reason
    elif event.kind == "started":
        nodes = event.metrics.get("nodes")
        run.rounds.append(RoundSummary(event.round, None if nodes is None else int(nodes)))
    elif event.kind == "evaluated" and "held_out_base" in event.metrics:
        run.gate = dict(event.metrics)
    elif run.rounds:
        _add_to_round(run.rounds[-1], event)


def _add_to_round(current: RoundSummary, event: RoundEvent) -> None:
    metrics = event.metrics
    if event.kind == "admitted":
        current.admitted += 1
    elif event.kind == "refused":
        reason = event.reason.partition(":")[0]
        current.refused[reason] = current.refused.get(reason, 0) + 1
    elif event.kind == "failed" and event.device:
        current.failed += 1
    elif event.kind == "failed":
        current.outcome = event.reason
    elif event.kind == "aggregated":
        current.outcome = "averaged"
        current.devices_before = metrics.get("devices_before")
        current.seconds = metrics.get("seconds")
        current.epsilon = metrics.get("epsilon")
    elif event.kind == "evaluated" and metrics.get("held_out_segments"):
        current.held_out = metrics.get("held_out")


class RunsReport(Document):
    """What `/api/rounds` answers."""

    task: str
    runs: list[RunSummary]


def report_of(task: str, events: Iterable[RoundEvent]) -> RunsReport:
    return RunsReport(task=task, runs=history(events))


# --- learning -------------------------------------------------------------------------------------

SIDES = (
    ("devices", "on devices"), ("held_out", "on held-out devices"),
    ("recent", "on recent windows"), ("audit", "on audit segments (not used for any decision)"),
)  # fmt: skip
COHORT = re.compile(r"(devices|held_out|recent)/([^/]+)")


def learning(moment: Moment) -> dict[str, Any]:
    """Return runs and rounds, the newest first, and what the gate decided."""
    view = moment.view
    runs = history(view.rounds)[-RUNS:][::-1]
    for run in runs:  # what the gate looked at is of the last round too
        if run.rounds and run.rounds[-1].held_out is None:
            run.rounds[-1].held_out = run.gate.get("held_out")
    metric = runs[0].metric if runs else "accuracy"
    decided = {e.run: e for e in view.rounds if e.kind in ("promoted", "rejected")}
    gates = {run: gate_words(event, named(metric)) for run, event in decided.items()}
    return {
        "runs": runs,
        "metric": named(metric),
        "refused": {
            run.run: sum((Counter(r.refused) for r in run.rounds), Counter[str]()) for run in runs
        },
        "now": run_progress(view.current_run),
        "gates": gates,
        "chart": _rounds_chart(runs, metric),
    }


def _rounds_chart(runs: Sequence[RunSummary], metric: str) -> dict[str, Any]:
    rounds = [(run.run, each) for run in runs[::-1] for each in run.rounds][-ROUNDS:]

    def places(values: Iterator[float | None]) -> Points:
        return list(enumerate(values))

    held_out = series(
        f"{named(metric)} on held-out devices", PALETTE[0], places(r.held_out for _, r in rounds)
    )
    bars = (
        ("admitted", PALETTE[2], places(r.admitted for _, r in rounds)),
        ("refused", PALETTE[4], places(sum(r.refused.values()) for _, r in rounds)),
        ("no answer", "#8a929b", places(r.failed for _, r in rounds)),
    )
    lines = [held_out, *(series(*each, kind="bar") for each in bars)]
    names = [f"{short_runs(run)}/{each.number}" for run, each in rounds]
    axis = share_axis([held_out], shares=metric in SHARES or top(metric) > 1)
    return chart("The metric and updates by round", lines if rounds else [], names=names, **axis)


def gate_words(event: RoundEvent, metric: str) -> list[str]:
    """Return the gate's decision for a person, a sentence a line."""
    metrics, promoted = event.metrics, event.kind == "promoted"
    verdict = "The candidate passed the gate" if promoted else "The gate refused the candidate"
    lines = [short_runs(f"{verdict}: {event.reason}.")]
    for name, where in SIDES:
        segments = int(metrics.get(f"{name}_segments", 0))
        if segments and name in metrics and f"{name}_base" in metrics:
            before, after = digits(metrics[f"{name}_base"]), digits(metrics[name])
            same = counted(segments, "segment")
            where = f"{where[:1].upper()}{where[1:]}"
            lines.append(f"{where}: {metric} {before} → {after} on the same {same}.")
    words = dict(SIDES)
    cohorts = sorted(
        (gain, f"{match[2]} {words[match[1]]}", int(metrics.get(f"{name}/segments", 0)))
        for name, gain in metrics.items()
        if (match := COHORT.fullmatch(name)) is not None
    )
    if cohorts:
        (least, worst, segments), (most, best, _) = cohorts[0], cohorts[-1]
        lines.append(
            f"Of {counted(len(cohorts), 'cohort')} {worst} gained least ({least:+.2f} on "
            f"{counted(segments, 'segment')}), {best} most ({most:+.2f})."
        )
    return lines


# --- releases -------------------------------------------------------------------------------------


def releases(moment: Moment) -> dict[str, Any]:
    """Return what devices are to serve, how a canary does, and all decisions, the newest
    first. bounds: the odds at which a canary goes back, and on, as the
    controller that offered it has them."""
    view, desired = moment.view, moment.view.standing
    decided = view.decided[::-1]
    offered = desired.offered.model if desired.offered else None
    stages = [d for d in decided if d.kind == "stage" and d.model == offered]
    known = (d.evidence for d in stages if "bound_worse" in d.evidence)  # not a manual one
    count, metric = view.offered_count if offered else 0, view.latest_agreement
    serving = [(ref.model, n) for ref, n in (
        (desired.stable, len(view.devices) - count), (desired.offered, count)) if ref]  # fmt: skip
    began_us = min((d.time_us for d in stages), default=None)
    return {
        "released": release_line(view),
        "desired": desired,
        "devices": len(view.devices),
        "serving": serving,
        "newest": next((d.model for d in decided if d.model and d.kind != "teacher"), "MODEL"),
        "heading": metric_title(metric.called, lower_is_better=metric.lower_is_better),
        "growth": _growth(moment, began_us) if began_us else None,
        "words": view.canary.words,
        "odds": _odds(view.canary, next(known, StageRules().bounds)) if offered else None,
        "decisions": [(d, decision_text(d)) for d in decided[:DECISIONS]],
    }


def _growth(moment: Moment, began_us: int) -> dict[str, Any]:
    """Return the metric of all windows since the first stage, of the canary and of the others."""
    desired = moment.view.standing
    refs = (("canary", desired.offered), ("others", desired.stable))
    names = {ref.model: f"{who} {ref.model}" for who, ref in refs if ref is not None}
    found: defaultdict[str, Judgement] = defaultdict(Judgement)
    points: dict[str, Points] = {name: [] for name in names}
    for number, slot in sorted(moment.history.slots[SLOT_S].items()):
        at_s = (number + 1) * SLOT_S
        if at_s * 1_000_000 <= began_us:
            continue
        for name in names:
            if (part := slot.versions.get(name)) is not None:
                found[name] += part.judgement
            metric = moment.view.latest_agreement.metric
            points[name].append((at_s * 1000, value_of(metric, found[name].sums)))
    lines = [series(text, colour(name), points[name]) for name, text in names.items()]
    axis = share_axis(lines, shares=not moment.view.latest_agreement.lower_is_better)
    return chart("The metric of the canary and of the others", lines, **axis)


def _odds(evidence: Evidence, bounds: Mapping[str, float]) -> dict[str, Any]:
    """Return the odds on a scale of powers of ten, and the bounds that end the stage."""
    odds = evidence.odds

    def line(values: Iterator[float]) -> Points:
        return [(point.at_us // 1000, min(max(value, LEAST), MOST))
                for point, value in zip(odds, values, strict=True)]  # fmt: skip

    ends = {bounds["bound_worse"]: "goes back", bounds["bound_fine"]: "goes on"}
    if len(ends) == 1:
        ends = {bounds["bound_worse"]: "goes back, or on"}
    lines = [
        series("worse", PALETTE[4], line(point.worse for point in odds)),
        series("not worse", PALETTE[2], line(point.fine for point in odds)),
        *(
            series(f"bound: it {end} at {bound:.3g} to 1", "#8a929b", line(bound for _ in odds))
            for bound, end in ends.items()
        ),
    ]
    return chart("Odds that the canary is worse, and that it is not", lines,
                 min=LEAST, max=MOST, log=True)  # fmt: skip
