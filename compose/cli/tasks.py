"""A task on one machine, from its file to the running loop: `tidewheel new`, `check`, `prepare`,
`simulate` and `up`."""

import signal
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from compose.cli.arguments import (
    DEFAULT_STATE,
    AsJson,
    Rounds,
    State,
    Strategy,
    TaskArgument,
    checked_strategy,
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
    say(f"    tidewheel up {path}:task")


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
    from compose.preflight.check import check_task, show
    from compose.preflight.device_import import import_finding

    report = check_task(load_task(task), readings, models=not fast)
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


def simulation(
    task: TaskArgument,
    devices: Annotated[
        int, typer.Option(min=2, help="Number of devices; those beyond the fleet share recordings.")
    ] = 100,
    rounds: Rounds = None,
    strategy: Strategy = None,
    seed: Annotated[int, typer.Option(help="The random seed, for the order of training.")] = 0,
    state: Annotated[
        Path,
        typer.Option(help="A separate state folder, which serves a better model."),
    ] = DEFAULT_STATE / "simulation",
    json: AsJson = False,
) -> None:
    """Learn in federated rounds with simulated devices: no Kafka, no agents, no SuperNodes.

    Uses the same ServerApp and training as a fleet, in Flower's simulation engine; needs
    tidewheel[simulation].
    """
    from compose.launcher.simulation import Simulation, simulate
    from compose.reports import rounds as shown

    loaded, terminal = load_task(task), console(stderr=json)
    config: dict[str, Any] = {"seed": seed}
    if rounds is not None:
        config["rounds"] = rounds
    if strategy is not None:
        config["strategy"] = checked_strategy(loaded, strategy)
    tell = partial(terminal.print, markup=False, highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that Ray stops too
    run = simulate(Simulation(task, devices, state, config), tell)
    shown.print_rounds(loaded.id, [run], console(), as_json=json)


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
