"""The `tidewheel` command line.

Each command imports its own part only: a device needs no faust, a worker no Flower. Settings are
read here, once, and passed down. An error that we raise on purpose is one line on stderr; its exit
code is 2 for a wrong call and 1 for a failure.
"""

import logging
import os
import signal
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from compose.layout import Layout
from compose.options import UpOptions
from streams.contract.bus import BrokerSettings
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

TaskArgument = Annotated[
    str, typer.Argument(metavar="TASK", help="The task: path/to/file.py:task or module:task.")
]
State = Annotated[Path, typer.Option("--state", help="The state folder.", envvar="TIDEWHEEL_STATE")]
Kafka = Annotated[
    str | None,
    typer.Option(
        "--kafka",
        metavar="HOST:PORT",
        help="A Kafka cluster; also TIDEWHEEL_KAFKA. For TLS and SASL set "
        "TIDEWHEEL_KAFKA_SECURITY_PROTOCOL, _SASL_MECHANISM, _USERNAME, _PASSWORD, _CAFILE, "
        "_CERTFILE and _KEYFILE.",
    ),
]
Trust = Annotated[
    list[Path] | None,
    typer.Option("--trust", help="A public key to trust; default: <state>/keys/signing.pub."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Offset = Annotated[int, typer.Argument(help="The letter's offset, as `list` shows it.")]
DEFAULT_STATE = Path(".tidewheel")


class QueryFormat(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


letters = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(
    letters, name="dead-letters", help="What could not be understood or scored: look, send again."
)


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

    options = UpOptions(
        task_ref=task,
        devices=devices,
        state=state,
        kafka=kafka,
        speed=speed,
        workers=workers,
        partitions=partitions,
        rounds=rounds,
        minutes=minutes,
        until_closed=until_closed,
        timeout_s=timeout,
        json=json,
    )
    raise typer.Exit(Up(options, _console(stderr=json)).run())


@app.command()
def prepare(task: TaskArgument, state: State = DEFAULT_STATE) -> None:
    """Make the signing key, the first model and the teacher; `up` does it by itself.

    Training is cached. Prints where the files for workers and devices on other machines lie.
    """
    from compose.preparation import make_models
    from compose.references import absolute_reference
    from streams.contract.task import check_model

    reference, console = absolute_reference(task), _console()
    loaded, layout = load_task(reference), Layout(state)
    check_model(loaded)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    model = make_models(reference, loaded, layout, say)
    say(f"devices   {layout.registry / 'models' / model}.twa and {layout.public_key}")
    say(f"workers   {layout.registry / 'teacher.twa'} and {layout.public_key}")


@app.command()
def edge(
    task: TaskArgument,
    device: Annotated[str, typer.Option(help="The device's name.")],
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    model: Annotated[
        Path | None,
        typer.Option(help="An artifact for a device that has none; default: the registry's."),
    ] = None,
    trust: Trust = None,
    speed: Annotated[
        float, typer.Option(help="Replay speed: 1 is real time, 0 as fast as it goes.")
    ] = 1.0,
    passes: Annotated[
        int | None, typer.Option(min=1, help="Passes through the data; default: endless.")
    ] = None,
    drain: Annotated[
        float, typer.Option(help="Seconds to send what is pending at the end.")
    ] = 10.0,
) -> None:
    """Run one device: infer, keep events in the spool, forward them, follow releases.

    Works without a broker in reach. SIGTERM or Ctrl-C drains it.
    """
    from edge_client.agent import run
    from edge_client.settings import EdgeSettings

    layout = Layout(state)
    _log()
    run(
        EdgeSettings(
            task_ref=task,
            device=_device_name(device),
            folder=layout.device(device),
            broker=_broker(kafka),
            trusted=_trusted(layout, trust),
            model=model or _served_model(layout),
            speed=speed,
            passes=passes,
            drain_s=drain,
        )
    )


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
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Serve /metrics (Prometheus), /ready and /live on 127.0.0.1; 0: a free port.",
        ),
    ] = None,
) -> None:
    """Run a scoring worker: close event-time windows and score them with the teacher.

    Workers of one task share its partitions, each under an --instance of its own. SIGTERM or Ctrl-C
    ends it between two commits.
    """
    from streams.worker.app import run
    from streams.worker.settings import WorkerSettings, default_threads

    layout = Layout(state)
    _log()
    run(
        WorkerSettings(
            task=task,
            broker=_broker(kafka),
            store=store or layout.store,
            trusted=_trusted(layout, trust),
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
    from federation.release import announce_teacher
    from federation.teacher import replace_teacher
    from streams.contract.bus import Producer
    from streams.contract.signing import load_private_key

    loaded, layout = load_task(task), Layout(state)
    key = load_private_key(layout.signing_key)
    registry = Registry(layout.registry, loaded.name, loaded.version, [key.public_key()])
    try:
        data = weights.read_bytes()
    except OSError as exc:
        raise UsageError(f"cannot read {weights}: {exc}") from exc
    producer = Producer(_broker_of(state, kafka))  # before anything is kept
    try:
        artifact = replace_teacher(loaded, registry, key, data, str(weights))
        announce_teacher(producer, registry, "by hand")
    finally:
        producer.close()
    _console().print(f"teacher {artifact.model} is offered to the workers", highlight=False)


@app.command()
def controller(
    task: TaskArgument,
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The SuperLink.")
    ] = "127.0.0.1:8000",
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds of a run; default: the task's.")
    ] = None,
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
) -> None:
    """Decide when the fleet learns: start a federated run when the windows say so.

    Announces the model that the registry serves. Ctrl-C ends it; a run goes on by itself.
    """
    from compose import flower
    from compose.references import absolute_reference
    from federation.controller import ControllerSettings, run

    layout = Layout(state)
    host, _, port = superlink.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--superlink {superlink}: write it as HOST:PORT")
    broker = _broker(kafka)
    config: dict[str, Any] = {
        "task": absolute_reference(task),
        "state": str(state.resolve()),
        "kafka": broker.bootstrap,
        "minimum-nodes": min_devices,
    }
    if rounds is not None:
        config["rounds"] = rounds
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _log()
    run(
        ControllerSettings(
            task_ref=task,
            broker=broker,
            state=state,
            registry=layout.registry,
            public_keys=_trusted(layout, None),
            submission=flower.submission(state, f"{host}:{port}", config),
            min_events=min_events,
            min_devices=min_devices,
            min_interval_s=min_interval,
            new_labels=new_labels,
            schedule_s=schedule,
            max_runs=max_runs,
        ),
        stop,
    )


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
    found = read_status(_broker_of(state, kafka), name)
    print_status(found, _console(), as_json=json)


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
            write_result(rows, "json" if json else form.value, output, _console())
    except duckdb.Error as exc:
        raise UsageError(f"the query fails: {str(exc).splitlines()[0]}") from exc
    finally:
        connection.close()


@letters.command("list")
def letters_list(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    reason: Annotated[str | None, typer.Option(help="Only those with this reason.")] = None,
    json: AsJson = False,
) -> None:
    """List the dead letters, oldest first."""
    from compose import dead_letters

    found = dead_letters.read_letters(_broker_of(state, kafka), load_task(task).name)
    found = [letter for letter in found if reason in (None, letter.reason)]
    if json:
        _console().print_json(data=[dead_letters.to_json(letter) for letter in found])
    else:
        dead_letters.print_letters(found, _console())


@letters.command("show")
def letters_show(
    task: TaskArgument,
    offset: Offset,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    json: AsJson = False,
) -> None:
    """Show one dead letter."""
    from compose import dead_letters

    found = dead_letters.read_letters(_broker_of(state, kafka), load_task(task).name)
    letter = dead_letters.find(found, offset)
    if json:
        _console().print_json(data=dead_letters.to_json(letter))
    else:
        dead_letters.print_letter(letter, _console())


@letters.command("replay")
def letters_replay(
    task: TaskArgument,
    offsets: Annotated[list[int] | None, typer.Argument(help="Offsets, as `list` shows.")] = None,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    reason: Annotated[str | None, typer.Option(help="All with this reason.")] = None,
) -> None:
    """Send dead letters to `events` again, after what failed on them was mended."""
    from compose import dead_letters

    if bool(offsets) == bool(reason):
        raise UsageError("name offsets, or a --reason")
    settings, name = _broker_of(state, kafka), load_task(task).name
    found = dead_letters.read_letters(settings, name)
    if offsets:
        chosen = [dead_letters.find(found, offset) for offset in offsets]
    else:
        chosen = [letter for letter in found if letter.reason == reason]
    sent = dead_letters.replay(settings, name, chosen)
    _console().print(f"{sent} letters sent to {name}.events", highlight=False)


def _device_name(name: str) -> str:
    from streams.contract.task import DEVICE_NAME

    if not DEVICE_NAME.fullmatch(name):
        raise UsageError(f"--device {name!r}: letters, digits, '.', '_' and '-' only, at most 63")
    return name


def _broker(kafka: str | None) -> BrokerSettings:
    """The cluster's settings from the environment, at `kafka` where that is given."""
    try:
        settings = BrokerSettings()  # type: ignore[call-arg]  # pydantic fills it from the alias
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise UsageError(f"TIDEWHEEL_KAFKA_{name}: {first['msg']}") from exc
    return settings.model_copy(update={"bootstrap": kafka}) if kafka else settings


def _broker_of(state: Path, kafka: str | None) -> BrokerSettings:
    """As _broker, but with the state folder's own broker where nothing else is named."""
    import json as json_module

    ports = state / "broker" / "ports.json"
    if kafka is None and "TIDEWHEEL_KAFKA" not in os.environ and ports.exists():
        try:
            kafka = f"127.0.0.1:{int(json_module.loads(ports.read_bytes())['broker'])}"
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise UsageError(f"{ports} cannot be read ({exc}): name the broker by --kafka") from exc
    return _broker(kafka)


def _trusted(layout: Layout, given: list[Path] | None) -> tuple[Path, ...]:
    return tuple(given) if given else (layout.public_key,)


def _served_model(layout: Layout) -> Path | None:
    """The artifact that the registry beside this device serves, where there is one."""
    import json as json_module

    try:
        model = json_module.loads((layout.registry / "serving.json").read_bytes())["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    path = layout.registry / "models" / f"{model}.twa"
    return path if path.exists() else None


def _console(*, stderr: bool = False) -> Console:
    """The terminal's width, or enough for our tables where there is none."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=140)


def _log() -> None:
    level = os.environ.get("TIDEWHEEL_LOG_LEVEL", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        raise UsageError(f"TIDEWHEEL_LOG_LEVEL {level}: DEBUG, INFO, WARNING or ERROR")
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


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
