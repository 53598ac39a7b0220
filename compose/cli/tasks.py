"""`tidewheel new|check`: writing a task file, and looking at its data before the first run."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from compose.cli.arguments import AsJson, TaskArgument
from compose.reports.terminal import console, print_json, say
from streams.contract.errors import UsageError
from streams.contract.task import load_task

Kind = Literal["classification", "regression"]


def new(
    name: Annotated[str, typer.Argument(help="The task's name; the file is NAME.py.")],
    kind: Annotated[
        Kind, typer.Option(help="Whether the model chooses a class or predicts numbers.")
    ] = "classification",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented task file that runs as it is, on made-up readings."""
    from compose.preflight.template import render
    from streams.contract.task import NAME

    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a task's name: write lower-case letters, digits, - and _, a letter "
            "first, without .py"
        )
    path = Path(f"{name.replace('-', '_')}.py")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already: choose another name, or say --force")
    path.write_text(render(name, kind))
    say(f"{path} is written: put your readings, classes and model into it, then")
    say(f"    tidewheel check {path}:task")
    say(f"    tidewheel up {path}:task --devices 3")


def check(
    task: TaskArgument,
    readings: Annotated[
        int, typer.Option(min=1, help="How many readings of each device are looked at.")
    ] = 1000,
    fast: Annotated[
        bool, typer.Option("--fast", help="Only look at the readings: build and train nothing.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Look at a task before its first run: readings, labels, rates, model, sizes.

    Each finding comes with advice. Exits 1 if something cannot work, 0 with warnings otherwise.
    """
    from compose.preflight import report as shown
    from compose.preflight.check import check_task

    report = check_task(load_task(task), readings, models=not fast)
    if json:
        print_json(asdict(report))
    else:
        shown.show(report, console())
    raise typer.Exit(1 if report.failed else 0)
