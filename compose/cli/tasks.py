"""A task on one machine, from its file to the running loop: `tidewheel new`, `check`, `prepare` and
`up`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from compose.cli.arguments import (
    DEFAULT_STATE,
    AsJson,
    State,
    TaskArgument,
    options_of,
    shares_of,
    taking,
)
from compose.launcher.commands import UpOptions
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import console, print_json, say
from streams.contract.errors import UsageError
from streams.contract.task import absolute_reference, load_task

Kind = Literal["classification", "regression"]


def new(
    name: Annotated[str, typer.Argument(help="The task's name; the file is NAME.py.")],
    kind: Annotated[
        Kind, typer.Option(help="Whether the model chooses a class or predicts numbers.")
    ] = "classification",
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
    if path.exists():
        raise UsageError(f"{path} exists already: choose another name, or remove it")
    path.write_text(render(name, kind))
    say(f"{path} is written: put your readings, classes and model into it, then")
    say(f"    tidewheel check {path}:task")
    say(f"    tidewheel up {path}:task")


def check(task: TaskArgument, json: AsJson = False) -> None:
    """Look at a task before its first run: readings, labels, rates, model, sizes.

    Each finding comes with advice. Exits 1 if something cannot work, 0 with warnings otherwise.
    """
    from compose.preflight.check import check_task, import_finding, show

    report = check_task(load_task(task))
    if (found := import_finding(task)) is not None:
        report = replace(report, findings=[found, *report.findings])
    if json:
        print_json(asdict(report))
    else:
        show(report, console())
    raise typer.Exit(1 if report.failed else 0)


def run_up(options: UpOptions) -> None:
    """Run everything on this machine: broker, worker, devices, Flower, controller, console.

    Restarts processes that die. Ctrl-C drains the devices, prints the event account and stops all
    processes. Exits 1 if the event account does not balance.
    """
    from compose.launcher.up import Up

    shares_of(options.stages)
    raise typer.Exit(Up(options, console(stderr=options.json)).run())


up = taking(run_up, options_of(UpOptions), lambda given: UpOptions(**given))


def prepare(task: TaskArgument, state: State = DEFAULT_STATE) -> None:
    """Create the signing key, the first model and the teacher; `up` does this too.

    Training is cached. Prints the files that workers and devices on other machines need.
    """
    from compose.launcher.preparation import look, make_models

    reference, layout = absolute_reference(task), StateDir(state)
    loaded = load_task(reference)
    look(loaded, say)
    model = make_models(reference, loaded, layout, say)
    say(f"devices   {layout.registry / 'models' / model}.twa and {layout.public_key}")
    say(f"workers   {layout.registry / 'teacher.twa'} and {layout.public_key}")
