"""The `tidewheel` command line.

Each command imports its own part only: a device needs no faust, a worker no Flower. Settings are
read here, once, and passed down. An error that we raise on purpose is one line on stderr; its exit
code is 2 for a wrong call and 1 for a failure.
"""

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from compose.cli import dead_letters, edge, keys, models, nodes, releases, server, timeline
from compose.cli.arguments import (
    DEFAULT_STATE,
    STAGES,
    AsJson,
    Kafka,
    Stages,
    State,
    Strategy,
    TaskArgument,
    broker_from,
    broker_of,
    checked_strategy,
    shares_of,
)
from compose.launcher.options import UpOptions
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import console
from streams.contract.errors import TidewheelError, UsageError
from streams.contract.task import load_task

app = typer.Typer(
    name="tidewheel",
    help="A fleet of devices that infer on their own streams and learn in federated rounds; "
    "Kafka carries their events, Faust scores them, the checked and signed model comes back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


class QueryFormat(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


app.add_typer(edge.app, name="edge", help="One device: run it, ask it, drain it, label, wipe.")
app.add_typer(
    dead_letters.app,
    name="dead-letters",
    help="What could not be understood or scored: look, send again.",
)
app.add_typer(keys.app, name="keys", help="Whose signatures count: list, new, trust, use, revoke.")
app.add_typer(
    models.app,
    name="models",
    help="The versions in the registry: list, show, verify, diff, promote, rollback, prune.",
)
app.command("releases")(releases.releases)
app.command("timeline")(timeline.timeline)
app.add_typer(nodes.app, name="node", help="Which devices may take part: add, list, remove.")
for command in (server.worker, server.teacher, server.controller, server.train):
    app.command()(command)


@app.command()
def up(
    task: TaskArgument,
    devices: Annotated[int, typer.Option(help="How many devices of the task's fleet.")] = 6,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    speed: Annotated[
        float, typer.Option(help="Replay speed: 1 is real time, 0 as fast as it goes.")
    ] = 20.0,
    workers: Annotated[int, typer.Option(min=1, help="How many scoring workers.")] = 1,
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of a new topic.")] = 4,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds of a federated run; default: the task's.")
    ] = None,
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
            help="Stop once every device has answered with a model that the fleet has learned.",
        ),
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds after which --until-closed fails.")
    ] = 600.0,
    json: AsJson = False,
) -> None:
    """Run everything on this machine: broker, worker, devices, Flower, controller.

    Restarts what dies; Ctrl-C drains the devices, prints the account and takes all processes down.
    Exits 1 when the account of events does not add up.
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
        rounds=rounds,
        strategy=strategy,
        stages=stages,
        secure=secure,
        minutes=minutes,
        until_closed=until_closed,
        timeout_s=timeout,
        json=json,
    )
    raise typer.Exit(Up(options, console(stderr=json)).run())


@app.command("simulate")
def simulation(
    task: TaskArgument,
    devices: Annotated[
        int, typer.Option(min=2, help="How many; more than the task's fleet share recordings.")
    ] = 100,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds of the run; default: the task's.")
    ] = None,
    strategy: Strategy = None,
    seed: Annotated[int, typer.Option(help="Another one trains in another order.")] = 0,
    state: Annotated[
        Path,
        typer.Option(help="A state folder of its own: a better model is served from it."),
    ] = DEFAULT_STATE / "simulation",
    json: AsJson = False,
) -> None:
    """Learn in federated rounds with simulated devices: no Kafka, no agents, no SuperNodes.

    The same ServerApp and the same training as in a fleet, in Flower's simulation engine; needs
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

    def say(text: str) -> None:
        terminal.print(text, markup=False, highlight=False, soft_wrap=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: Ray is to go as well
    run = simulate(Simulation(task, devices, state, config), say)
    shown.print_rounds(loaded.name, [run], console(), as_json=json)


@app.command()
def prepare(task: TaskArgument, state: State = DEFAULT_STATE) -> None:
    """Make the signing key, the first model and the teacher; `up` does it by itself.

    Training is cached. Prints where the files for workers and devices on other machines lie.
    """
    from compose.launcher.preparation import make_models
    from compose.launcher.references import absolute_reference
    from streams.contract.task import check_model

    reference, terminal = absolute_reference(task), console()
    loaded, layout = load_task(reference), StateDir(state)
    check_model(loaded)

    def say(text: str) -> None:
        terminal.print(text, markup=False, highlight=False, soft_wrap=True)

    model = make_models(reference, loaded, layout, say)
    say(f"devices   {layout.registry / 'models' / model}.twa and {layout.public_key}")
    say(f"workers   {layout.registry / 'teacher.twa'} and {layout.public_key}")


@app.command()
def status(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    json: AsJson = False,
) -> None:
    """Show the fleet as its topics tell it: devices, agreement, drift, rounds, the release; and how
    fast and how far behind the workers are."""
    from compose.reports.status import print_status, read_status

    name = load_task(task).name
    found = read_status(broker_of(state, kafka), name)
    print_status(found, console(), as_json=json)


@app.command()
def rounds(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    json: AsJson = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw accuracy and updates; needs tidewheel[plot]."),
    ] = None,
) -> None:
    """Show the federated runs: rounds, nodes, updates admitted and refused, accuracy, outcome.

    From the journals in the state folder; with --kafka also from the topic.
    """
    from compose.reports import rounds as shown

    name = load_task(task).name
    events = shown.from_journals(state / "runs")
    if kafka is not None:
        events += shown.from_topic(broker_from(kafka), name)
    runs = shown.history(events)
    if plot is not None:
        shown.plot(name, runs, plot)
    shown.print_rounds(name, runs, console(), as_json=json)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A query over `scores` and `drops`.")],
    state: State = DEFAULT_STATE,
    store: Annotated[
        Path | None, typer.Option(help="The Delta store's folder; default: <state>/store.")
    ] = None,
    form: Annotated[
        QueryFormat, typer.Option("--format", help="How the rows are written.")
    ] = QueryFormat.table,
    output: Annotated[
        Path | None, typer.Option(help="A file to write to; default: standard output.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Query the store with DuckDB. Tables: `scores` (one row an event) and `drops`."""
    import duckdb

    from compose.reports.query_output import write_result
    from streams.worker.store.query import open_store

    connection = open_store(store or StateDir(state).store)
    try:
        result = connection.sql(sql)
        if result is not None:
            rows = result.to_arrow_table()
            write_result(rows, "json" if json else form.value, output, console())
    except duckdb.Error as exc:
        raise UsageError(f"the query fails: {str(exc).splitlines()[0]}") from exc
    finally:
        connection.close()


def main() -> None:
    """The command `tidewheel`."""
    typer.core.HAS_RICH = False  # or plain help has the brackets that are escaped for rich
    try:
        app()
    except TidewheelError as exc:
        print(f"tidewheel: {exc}", file=sys.stderr)  # noqa: T201
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
