"""`tidewheel dead-letters`: show messages that could not be decoded or scored, and send them
again."""

from typing import Annotated

import typer

from compose.cli.arguments import DEFAULT_STATE, AsJson, Kafka, State, TaskArgument, broker_of
from compose.reports.terminal import console, print_json
from streams.contract.errors import UsageError
from streams.contract.task import load_task
from streams.fleet.wording import counted

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_letters(
    task: TaskArgument,
    offset: Annotated[
        int | None, typer.Argument(metavar="[OFFSET]", help="That one alone, whole.")
    ] = None,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    reason: Annotated[str | None, typer.Option(help="Only those with this reason.")] = None,
    json: AsJson = False,
) -> None:
    """List the dead letters, oldest first, or show one."""
    from compose.reports import dead_letters

    found = dead_letters.read_letters(broker_of(state, kafka), load_task(task).id)
    if offset is not None:
        letter = dead_letters.find(found, offset)
        if json:
            print_json(dead_letters.report_of(letter))
        else:
            dead_letters.print_letter(letter, console())
        return
    found = [letter for letter in found if reason in (None, letter.reason)]
    if json:
        print_json(dead_letters.reports_of(found))
    else:
        dead_letters.print_letters(found, console())


@app.command("replay")
def replay(
    task: TaskArgument,
    offsets: Annotated[list[int] | None, typer.Argument(help="Offsets, as `list` shows.")] = None,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    reason: Annotated[str | None, typer.Option(help="All with this reason.")] = None,
) -> None:
    """Send dead letters to `events` again, after their cause was fixed."""
    from compose.reports import dead_letters

    if bool(offsets) == bool(reason):
        raise UsageError("give offsets, or a --reason")
    settings, name = broker_of(state, kafka), load_task(task).id
    found = dead_letters.read_letters(settings, name)
    if offsets:
        chosen = [dead_letters.find(found, offset) for offset in offsets]
    else:
        chosen = [letter for letter in found if letter.reason == reason]
    sent = dead_letters.replay(settings, name, chosen)
    console().print(f"{counted(sent, 'dead letter')} sent to {name}.events", highlight=False)
