"""The decisions about a task's models, from the view of the fleet, or from the registry without a
broker or with --offline."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

from pydantic import BaseModel
from rich.console import Console

from compose.reports.terminal import moment, print_json, table
from federation.registry.catalog import describe_decision
from federation.registry.registry import Registry
from streams.contract.decisions import Decision
from streams.contract.errors import BrokerUnavailable
from streams.contract.task import Task
from streams.contract.topics import RELEASES
from streams.fleet.following import open_view, read_view
from streams.fleet.wording import counted, short_runs
from streams.kafka.settings import BrokerSettings

CONNECT_S = 2.0  # a person waits


def read_decisions(
    task: Task, broker: BrokerSettings | None, registry: Callable[[], Registry]
) -> list[Decision]:
    """Return the decisions that the view has, or the registry; a missing broker is reported."""
    if broker is not None:
        try:
            view = read_view(broker, task.id, CONNECT_S, (RELEASES,))
            return view.decided
        except BrokerUnavailable as exc:
            kept = registry()
            print(f"tidewheel: {exc}; read from {kept.where}", file=sys.stderr)  # noqa: T201
            return kept.decisions()
    return registry().decisions()


def follow(task: Task, broker: BrokerSettings) -> Iterator[Decision]:
    """Yield the view's decisions, then new ones as they come, each once."""
    view, reader = open_view(broker, task.id, (RELEASES,), CONNECT_S)
    with closing(reader):
        for message in reader.to_end():
            view.absorb(message)
        yield from view.decided
        while True:
            for message in reader.poll(0.5):
                if isinstance(found := view.absorb(message), Decision):
                    yield found


class DecisionReport(BaseModel):
    """A decision; share: of the fleet that the version is offered to."""

    seq: int
    time_us: int
    kind: str
    model: str | None
    reason: str
    evidence: dict[str, float]
    run: str
    key: str
    share: float
    stage: int


class DecisionsReport(BaseModel):
    """The output of `tidewheel releases --json`."""

    task: str
    decisions: list[DecisionReport]


def report_of(task: str, found: Iterable[Decision]) -> DecisionsReport:
    decisions = [DecisionReport(**describe_decision(decision)) for decision in found]
    return DecisionsReport(task=task, decisions=decisions)


def print_decisions(task: str, found: list[Decision], console: Console, *, as_json: bool) -> None:
    if as_json:
        print_json(report_of(task, found), console)
        return
    rows = [(str(d.seq), moment(d.time_us), d.kind, d.model or "-", short_runs(d.reason))
            for d in found]  # fmt: skip
    columns, title = ("no.", "when", "kind", "model", "reason"), counted(len(found), "decision")
    console.print(table(f"{task}: {title}", columns, rows, ("no.",), columns[:-1]))


def print_decision(decision: Decision, console: Console, *, as_json: bool) -> None:
    """Print one line."""
    if as_json:
        line = json.dumps(describe_decision(decision))
    else:
        about = f"{decision.seq} {decision.kind} {decision.model or '-'}"
        line = short_runs(f"{moment(decision.time_us)} {about}: {decision.reason}")
    console.print(line, markup=False, highlight=False, soft_wrap=True)
