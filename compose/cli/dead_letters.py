"""`tidewheel dead-letters`: show messages that could not be decoded or scored, and send them
again."""

from typing import Annotated

import typer

from compose.cli.arguments import DEFAULT_STATE, AsJson, Kafka, State, TaskArgument, broker_of
from compose.reports.terminal import console, print_json
from streams.contract.errors import UsageError
from streams.contract.task import load_task
from streams.fleet.wording import counted


def dead_letters(
    task: TaskArgument,
    offsets: Annotated[list[int] | None, typer.Argument(help="Those alone, whole.")] = None,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    reason: Annotated[str | None, typer.Option(help="Only those with this reason.")] = None,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Send those to `events` again, once the cause is fixed."),
    ] = False,
    json: AsJson = False,
) -> None:
    """List the messages that could not be decoded or scored, oldest first, show some, or send them
    to `events` again."""
    from compose.reports import dead_letters as letters

    if replay and bool(offsets) == bool(reason):
        raise UsageError("--replay: give offsets, or a --reason")
    settings, name = broker_of(state, kafka), load_task(task).id
    found = letters.read_letters(settings, name)
    if offsets:
        found = [letters.find(found, offset) for offset in offsets]
    else:
        found = [letter for letter in found if reason in (None, letter.reason)]
    if replay:
        sent = letters.replay(settings, name, found)
        console().print(f"{counted(sent, 'dead letter')} sent to {name}.events", highlight=False)
    elif json:
        print_json(letters.reports_of(found))
    elif offsets:
        for letter in found:
            letters.print_letter(letter, console())
    else:
        letters.print_letters(found, console())
