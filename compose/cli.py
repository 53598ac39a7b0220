"""The `tidewheel` command line.

Each command imports its own part only: a device needs no faust, a worker no Flower. Settings are
read here, once, and passed down. An error that we raise on purpose is one line on stderr; its exit
code is 2 for a wrong call and 1 for a failure.
"""

import signal
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from compose import edge, keys, letters, models, node, releases, timeline
from compose.arguments import (
    DEFAULT_STATE,
    STAGES,
    AsJson,
    Kafka,
    MetricsPort,
    RegistryPlace,
    Stages,
    State,
    Strategy,
    SuperlinkCa,
    TaskArgument,
    Trust,
    address,
    broker_from,
    broker_of,
    checked_strategy,
    configure_log,
    console,
    known_keys,
    shares_of,
    trusted_keys,
)
from compose.layout import Layout
from compose.options import UpOptions
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
    letters.app,
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
app.add_typer(node.app, name="node", help="Which devices may take part: add, list, remove.")


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
    from compose.up import Up

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
    from compose import rounds as shown
    from compose.simulation import Simulation, simulate

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
    from compose.preparation import make_models
    from compose.references import absolute_reference
    from streams.contract.task import check_model

    reference, terminal = absolute_reference(task), console()
    loaded, layout = load_task(reference), Layout(state)
    check_model(loaded)

    def say(text: str) -> None:
        terminal.print(text, markup=False, highlight=False, soft_wrap=True)

    model = make_models(reference, loaded, layout, say)
    say(f"devices   {layout.registry / 'models' / model}.twa and {layout.public_key}")
    say(f"workers   {layout.registry / 'teacher.twa'} and {layout.public_key}")


@app.command()
def worker(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    instance: Annotated[
        str, typer.Option(help="This worker's stable name within its group.")
    ] = "worker",
    store: Annotated[
        Path | None, typer.Option(help="The Delta store's folder; default: <state>/store.")
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Use this teacher's artifact whatever is offered; default: the one that the "
            "controller offers on Kafka, and <state>/registry/teacher.twa until then."
        ),
    ] = None,
    trust: Trust = None,
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of a new topic.")] = 4,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that score; default: the processors, at most 4."),
    ] = None,
    buffer_mb: Annotated[
        int, typer.Option(min=16, help="Megabytes of messages that wait for their windows.")
    ] = 512,
    metrics_port: MetricsPort = None,
) -> None:
    """Run a scoring worker: close event-time windows and score them with the teacher.

    Workers of one task share its partitions, each under an --instance of its own. SIGTERM or Ctrl-C
    ends it between two commits.
    """
    from streams.worker.app import run
    from streams.worker.settings import WorkerSettings, default_threads

    layout = Layout(state)
    configure_log()
    run(
        WorkerSettings(
            task=task,
            broker=broker_from(kafka),
            store=store or layout.store,
            trusted=trusted_keys(layout, trust),
            teacher=teacher,
            fallback=layout.registry / "teacher.twa",
            instance=instance,
            partitions=partitions,
            threads=threads or default_threads(),
            buffer_bytes=buffer_mb * 1_000_000,
            metrics_port=metrics_port,
        )
    )


@app.command()
def teacher(
    task: TaskArgument,
    weights: Annotated[
        Path, typer.Argument(help="The state dict of the task's teacher, as safetensors.")
    ],
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
) -> None:
    """Sign new weights for the teacher and offer them: workers change between two commits."""
    from federation.registry import Registry
    from federation.release import announce, read_told
    from federation.teacher import replace_teacher
    from streams.contract.bus import Producer
    from streams.contract.signing import load_private_key, load_public_key

    loaded, layout = load_task(task), Layout(state)
    key = load_private_key(layout.signing_key)
    known = [load_public_key(path) for path in known_keys(layout)]
    registry = Registry(layout.registry, loaded.name, loaded.version, known)
    try:
        data = weights.read_bytes()
    except OSError as exc:
        raise UsageError(f"cannot read {weights}: {exc}") from exc
    broker = broker_of(state, kafka)
    producer = Producer(broker)  # before anything is kept
    try:
        artifact = replace_teacher(loaded, registry, key, data, str(weights))
        registry.offer_teacher(key, "by hand")
        announce(producer, registry, read_told(broker, loaded.name))
    finally:
        producer.close()
    console().print(f"teacher {artifact.model} is offered to the workers", highlight=False)


@app.command()
def controller(
    task: TaskArgument,
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The SuperLink.")
    ] = "127.0.0.1:8000",
    superlink_ca: SuperlinkCa = None,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds of a run; default: the task's.")
    ] = None,
    strategy: Strategy = None,
    min_devices: Annotated[int, typer.Option(help="Devices that a run needs.")] = 2,
    min_events: Annotated[int, typer.Option(help="Scored events before a run.")] = 200,
    min_interval: Annotated[float, typer.Option(help="Seconds between two runs.")] = 60.0,
    new_labels: Annotated[
        int | None, typer.Option(help="New true labels that start a run; default: never.")
    ] = None,
    schedule: Annotated[
        float | None, typer.Option(help="Seconds after which a run starts anyway.")
    ] = None,
    max_runs: Annotated[int | None, typer.Option(help="Runs at the most.")] = None,
    stages: Stages = STAGES,
    min_windows: Annotated[
        int, typer.Option(min=1, help="Windows by a candidate before a stage may pass.")
    ] = 6,
    max_wait: Annotated[
        float, typer.Option(help="Seconds after which an undecided stage is held.")
    ] = 6 * 3600.0,
    false_rollbacks: Annotated[
        float, typer.Option(help="The share of equally good candidates that may be rolled back.")
    ] = 0.05,
    registry: RegistryPlace = None,
    artifact_url: Annotated[
        str, typer.Option(metavar="URL", help="Where devices get the registry's files as well.")
    ] = "",
    drift_devices: Annotated[
        int, typer.Option(min=0, help="Devices whose inputs drift that start a run; 0: never.")
    ] = 2,
    runs_per_day: Annotated[
        int | None, typer.Option(min=0, help="Runs in 24 hours at the most; by hand passes it.")
    ] = None,
    quiet_hours: Annotated[
        str | None,
        typer.Option(metavar="FROM-TO", help="No run begins then, as 22:00-06:00, local time."),
    ] = None,
    metrics_port: MetricsPort = None,
) -> None:
    """Decide when the fleet learns, and move what it has learned to the devices or back.

    Starts a federated run when the windows say so. A candidate that has passed the gate is offered
    to a share of the fleet, then to more, then to all, or taken back, as its windows say. Of
    several controllers one is at work. Ctrl-C ends it; a run goes on by itself.
    """
    from compose import flower
    from compose.references import absolute_reference
    from federation.canary import Rules
    from federation.controller import ControllerSettings, run
    from federation.quiet import QuietHours
    from federation.rollout import Plan

    quiet = None if quiet_hours is None else QuietHours.parse(quiet_hours)
    layout = Layout(state)
    place = registry or str(layout.registry)
    rules = Rules(alpha=false_rollbacks, minimum_windows=min_windows, max_wait_s=max_wait)
    where = address(superlink)
    broker = broker_from(kafka)
    config: dict[str, Any] = {
        "task": absolute_reference(task),
        "state": str(state.resolve()),
        "kafka": broker.bootstrap,
        "minimum-nodes": min_devices,
    }
    if registry is not None:
        config["registry"] = registry
    if rounds is not None:
        config["rounds"] = rounds
    if strategy is not None:
        config["strategy"] = checked_strategy(load_task(task), strategy)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    configure_log()
    run(
        ControllerSettings(
            task_ref=task,
            broker=broker,
            state=state,
            registry=place,
            public_keys=known_keys(layout),
            signing_key=layout.signing_key,
            plan=Plan(shares_of(stages), rules),
            url=artifact_url.rstrip("/"),
            submission=flower.submission(state, where, config, superlink_ca),
            min_events=min_events,
            min_devices=min_devices,
            min_interval_s=min_interval,
            new_labels=new_labels,
            schedule_s=schedule,
            max_runs=max_runs,
            drift_devices=drift_devices or None,
            runs_per_day=runs_per_day,
            quiet=quiet,
            metrics_port=metrics_port,
        ),
        stop,
    )


@app.command()
def train(
    task: TaskArgument,
    reason: Annotated[str, typer.Option(help="Why, for those who look at the runs later.")] = "",
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
) -> None:
    """Ask the controller for a federated run. No budget forbids it; one that goes on ends first."""
    from compose.asking import ask_for_run

    said = ask_for_run(broker_of(state, kafka), load_task(task).name, reason)
    console().print(said)


@app.command()
def status(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    json: AsJson = False,
) -> None:
    """Show the fleet as its topics tell it: devices, agreement, drift, rounds, the release; and how
    fast and how far behind the workers are."""
    from compose.status import print_status, read_status

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
    from compose import rounds as shown

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

    from compose.query import write_result
    from streams.worker.query import open_store

    connection = open_store(store or Layout(state).store)
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
    try:
        app()
    except TidewheelError as exc:
        print(f"tidewheel: {exc}", file=sys.stderr)  # noqa: T201
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
