"""`tidewheel releases`: what has been decided about a task's models."""

from typing import Annotated

import typer

from compose.cli.arguments import (
    DEFAULT_STATE,
    AsJson,
    Kafka,
    RegistryPlace,
    State,
    TaskArgument,
    broker_of,
    registry_of,
)
from compose.reports.terminal import console
from streams.contract.errors import UsageError
from streams.contract.task import load_task


def releases(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    registry: RegistryPlace = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Read the registry, ask no broker.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with new ones until Ctrl-C.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Show what has been decided about the models: number, when, kind, model, share, reason.

    From Kafka, or from the registry where no broker answers. --json adds the evidence; with
    --follow it is one object a line.
    """
    from compose.reports import releases as shown

    if offline and follow:
        raise UsageError("--follow needs a broker: leave out --offline")
    loaded, broker = load_task(task), None if offline else broker_of(state, kafka)
    if follow and broker is not None:
        for decision in shown.follow(loaded, broker):
            shown.print_decision(decision, console(), as_json=json)
        return
    found = shown.read_decisions(loaded, broker, lambda: registry_of(loaded, state, registry))
    shown.print_decisions(loaded.name, found, console(), as_json=json)
