"""`tidewheel rounds`: the federated runs and their rounds.

The events come from the event logs in the state folder, and from the view of the fleet if a broker
is given: an event log lacks the controller's events, the view has the newest runs alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from compose.reports.terminal import print_json, table
from streams.contract.documents import RoundEvent
from streams.contract.errors import MalformedRecord
from streams.contract.task.metrics import named
from streams.fleet.wording import counted, share, short_runs


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


def from_journals(runs: Path) -> list[RoundEvent]:
    """Return the events in runs/<run>/rounds.jsonl; ignores a line that a kill truncated."""
    found = []
    for path in sorted(runs.glob("*/rounds.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                found.append(RoundEvent.decode(line))
            except MalformedRecord:
                continue
    return found


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


class RunsReport(BaseModel):
    """The output of `tidewheel rounds --json`."""

    task: str
    runs: list[RunSummary]


def report_of(task: str, events: Iterable[RoundEvent]) -> RunsReport:
    return RunsReport(task=task, runs=history(events))


def print_rounds(task: str, runs: Sequence[RunSummary], console: Console, *, as_json: bool) -> None:
    if as_json:
        print_json(RunsReport(task=task, runs=list(runs)), console)
        return
    console.print(_table(task, runs))


def _table(task: str, runs: Sequence[RunSummary]) -> Table:
    """Return a table with a row per round; the first row has the run's name, the last one its
    outcome."""
    rounds = sum(len(run.rounds) for run in runs)
    title = f"{task}: {counted(len(runs), 'run')}, {counted(rounds, 'round')}"
    metric = f"{named(runs[-1].metric)} " if runs else ""
    right = ("round", "nodes", "admitted", f"{metric}held-out", f"{metric}on devices, before",
             "seconds", "epsilon of the aggregate")  # fmt: skip
    columns = ("run", *right[:3], "refused", *right[3:], "outcome")
    made = table(title, columns, (), right, ("run",))
    for run in runs:
        if not run.rounds:
            made.add_row(short_runs(run.run), *[""] * 8, short_runs(run.outcome))
        for index, each in enumerate(run.rounds):
            refused = [f"{reason} {count}" for reason, count in sorted(each.refused.items())]
            refused += [f"no answer {each.failed}"] if each.failed else []
            last = each is run.rounds[-1]
            made.add_row(
                "" if index else short_runs(run.run),
                str(each.number),
                "" if each.nodes is None else str(each.nodes),
                str(each.admitted),
                ", ".join(refused),
                share(each.held_out),
                share(each.devices_before),
                "" if each.seconds is None else f"{each.seconds:.1f}",
                "" if each.epsilon is None else f"{each.epsilon:.2f}",
                short_runs(run.outcome if last else each.outcome),
            )
        made.add_section()
    return made
