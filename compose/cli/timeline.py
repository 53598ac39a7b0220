"""`tidewheel timeline`: what happened to a task's models."""

from typing import Annotated

import typer

from compose.cli.arguments import DEFAULT_STATE, AsJson, Kafka, State, TaskArgument, broker_of
from compose.reports.terminal import console
from streams.contract.task import load_task


def timeline(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    since: Annotated[
        str | None, typer.Option(metavar="2h", help="Only the last 90s, 30m, 2h or 7d.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Tell what happened, when and why: runs, decisions, devices that went back, drift, agreement.

    Plain lines in order of time, the evidence in brackets; --json prints one object a line.
    """
    from compose.reports import timeline as told

    ago_s = None if since is None else told.seconds(since)
    found = told.read_timeline(broker_of(state, kafka), load_task(task).name)
    told.print_timeline(told.since(found, ago_s), console(), as_json=json)
