"""The `tidewheel` command line.

Each command imports only its own part: a device needs no faust, a worker no Flower. Settings are
read here once and passed down. An intentional error is one line on stderr; the exit code is 2 for
wrong usage and 1 for a failure.
"""

import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from compose.cli import dead_letters, edge, flower, keys, models, server, tasks, views
from compose.cli.arguments import (
    DEFAULT_STATE,
    STAGES,
    AsJson,
    Kafka,
    Partitions,
    Replication,
    Rounds,
    Speed,
    Stages,
    State,
    Strategy,
    TaskArgument,
    checked_strategy,
    shares_of,
)
from compose.cli.batch import jobs as batch_jobs
from compose.cli.batch import schedule, score
from compose.launcher.options import UpOptions
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import console, say
from streams.contract.errors import TidewheelError
from streams.contract.task import absolute_reference, load_task

app = typer.Typer(
    name="tidewheel",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(f"tidewheel {version('tidewheel')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """A fleet of devices that infer on their own streams and learn in federated rounds. Kafka
    transports their events, Faust workers score them, and signed models go back."""


app.add_typer(edge.app, name="edge", help="One device: run, status, drain, label, wipe.")
app.add_typer(
    dead_letters.app,
    name="dead-letters",
    help="Messages that could not be decoded or scored: list, show, replay.",
)
app.add_typer(
    batch_jobs.app,
    name="jobs",
    help="Jobs of `tidewheel score`: run, list, show, logs, report, stop, resume, retry, prune.",
)
app.add_typer(
    schedule.app,
    name="schedule",
    help="Batch jobs at set times: add, list, show, run, backfill, remove.",
)
app.add_typer(keys.app, name="keys", help="Signing keys: list, new, trust, use, revoke.")
app.add_typer(
    models.app,
    name="models",
    help="The versions in the registry: list, show, verify, diff, promote, rollback, pause, "
    "resume, prune, restore.",
)
app.add_typer(
    flower.app,
    name="node",
    help="The SuperNodes that may connect: add, list, remove, proxy-certificate.",
)
for command in (
    views.releases, views.timeline, server.worker, server.teacher, server.controller, server.train,
    flower.superlink, flower.superexec,
):  # fmt: skip
    app.command()(command)


@app.command()
def up(
    task: TaskArgument,
    devices: Annotated[int, typer.Option(help="Number of devices of the task's fleet.")] = 6,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    speed: Speed = 20.0,
    workers: Annotated[int, typer.Option(min=1, help="Number of scoring workers.")] = 1,
    partitions: Partitions = 4,
    replication: Replication = None,
    rounds: Rounds = None,
    strategy: Strategy = None,
    stages: Stages = STAGES,
    secure: Annotated[
        bool,
        typer.Option(
            "--secure", help="TLS to the SuperLink, and a registered key for every SuperNode."
        ),
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after so many minutes; default: at Ctrl-C.")
    ] = None,
    until_closed: Annotated[
        bool,
        typer.Option(
            "--until-closed",
            help="Stop once every device has answered with a model learned by the fleet.",
        ),
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds after which --until-closed fails.")
    ] = 600.0,
    no_console: Annotated[
        bool, typer.Option("--no-console", help="Do not start the live page.")
    ] = False,
    jobs: Annotated[
        bool, typer.Option("--jobs", help="Also run queued batch jobs and schedules.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Run everything on this machine: broker, worker, devices, Flower, controller, console.

    Restarts processes that die. Ctrl-C drains the devices, prints the event account and stops all
    processes. Exits 1 if the event account does not balance.
    """
    from compose.launcher.up import Up

    shares_of(stages)
    options = UpOptions(
        task_ref=task,
        devices=devices,
        state=state,
        kafka=kafka,
        speed=speed,
        workers=workers,
        partitions=partitions,
        replication=replication,
        rounds=rounds,
        strategy=strategy,
        stages=stages,
        secure=secure,
        minutes=minutes,
        until_closed=until_closed,
        timeout_s=timeout,
        json=json,
        console=not no_console,
        jobs=jobs,
    )
    raise typer.Exit(Up(options, console(stderr=json)).run())


@app.command("simulate")
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
    shown.print_rounds(loaded.name, [run], console(), as_json=json)


@app.command()
def prepare(task: TaskArgument, state: State = DEFAULT_STATE) -> None:
    """Create the signing key, the first model and the teacher; `up` does this too.

    Training is cached. Prints the files that workers and devices on other machines need.
    """
    from compose.launcher.preparation import make_models
    from streams.contract.task import check_model

    reference, layout = absolute_reference(task), StateDir(state)
    loaded = load_task(reference)
    check_model(loaded)
    model = make_models(reference, loaded, layout, say)
    say(f"devices   {layout.registry / 'models' / model}.twa and {layout.public_key}")
    say(f"workers   {layout.registry / 'teacher.twa'} and {layout.public_key}")


for view in (views.status, views.rounds, views.query, views.tail, views.console):
    app.command()(view)
app.command()(score.score)
app.command()(tasks.new)
app.command()(tasks.check)


def main() -> None:
    """Run the command `tidewheel`."""
    typer.core.HAS_RICH = False  # otherwise plain help shows brackets that are escaped for rich
    try:
        app()
    except TidewheelError as exc:
        print(f"tidewheel: {exc}", file=sys.stderr)  # noqa: T201
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
