"""The server's commands: `tidewheel controller`, `train`; and `label`, what other systems know."""

import csv
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from compose.cli.arguments import (
    DEFAULT_STATE,
    STAGES,
    AsJson,
    Kafka,
    RegistryPlace,
    Rounds,
    Stages,
    State,
    Strategy,
    SuperlinkCa,
    TaskArgument,
    address,
    broker_of,
    check_strategy,
    configure_log,
    options_of,
    shares_of,
    taking,
)
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import console, print_json, say
from federation.controller.settings import ControllerSettings
from streams.contract.documents import RoundEvent, encoded
from streams.contract.errors import MalformedRecord, UsageError
from streams.contract.events.json_items import KnownLabel, decode_known_labels
from streams.contract.task import NOTHING_LEARNS, Task, absolute_reference, load_task
from streams.contract.topics import LABELS, ROUNDS, topic_name
from streams.fleet.wording import counted
from streams.kafka.settings import BrokerSettings
from streams.runtime.process import by_thread


def run_controller(
    options: dict[str, Any],
    task: TaskArgument,
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The SuperLink.")
    ] = "127.0.0.1:8000",
    superlink_ca: SuperlinkCa = None,
    superlink_for_devices: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where invited devices join the SuperLink, as the proxy before it; default: as "
            "--superlink.",
        ),
    ] = None,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    rounds: Rounds = None,
    strategy: Strategy = None,
    stages: Stages = STAGES,
    registry: RegistryPlace = None,
    artifact_url: Annotated[
        str, typer.Option(metavar="URL", help="Where devices can also get the registry's files.")
    ] = "",
) -> None:
    """Start federated runs when needed, and roll models out to the devices or back.

    Starts a run when the windows require it. A candidate that has passed the gate is offered to a
    share of the fleet, then to more, then to all, or withdrawn, depending on its windows. Of
    several controllers one leads. Ctrl-C stops the controller; a run continues.
    """
    from compose.launcher import flower_processes
    from federation.controller.controller import run
    from federation.rollout.rollout import Plan

    layout = StateDir(state)
    place = registry or str(layout.registry)
    where = address(superlink)
    broker = BrokerSettings.at(kafka)
    config: dict[str, Any] = {
        "task": absolute_reference(task),
        "state": str(state.resolve()),
        "kafka": broker.bootstrap,
        "minimum-nodes": options["min_devices"],
        "superlink": address(superlink_for_devices or superlink),
    }
    if registry is not None:
        config["registry"] = registry if "://" in registry else str(Path(registry).resolve())
    if rounds is not None:
        config["rounds"] = rounds
    check_strategy(load_task(task), strategy)
    if strategy is not None:
        config["strategy"] = strategy
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, by_thread(stop.set))
    configure_log()
    run(
        ControllerSettings(
            task_ref=task,
            broker=broker,
            state=state,
            registry=place,
            public_keys=layout.trusted_keys(),
            signing_key=layout.signing_key,
            plan=Plan(shares_of(stages)),
            url=artifact_url.rstrip("/"),
            submission=flower_processes.submission(state, where, config, superlink_ca),
            **options,
        ),
        stop,
    )


controller = taking(run_controller, options_of(ControllerSettings), dict)


def train(
    task: TaskArgument,
    reason: Annotated[str, typer.Option(help="The reason, for the history.")] = "",
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
) -> None:
    """Request a federated run from the controller, regardless of budgets; it starts after an active
    one."""
    loaded = load_task(task)
    if not loaded.learns:
        raise UsageError(f"task {loaded.name!r}: {NOTHING_LEARNS}")
    console().print(ask_for_run(broker_of(state, kafka), loaded.id, reason))


def ask_for_run(broker: BrokerSettings, task: str, reason: str) -> str:
    """Request a run on `rounds`; return a line for the user."""
    from streams.kafka.producer import Producer

    asked = f" ({reason})" if reason else ""
    reason = f"manual: {reason}" if reason else "manual"
    event = RoundEvent(run="", kind="asked", time_us=time.time_ns() // 1000, reason=reason)
    with closing(Producer(broker)) as producer:
        producer.put(topic_name(task, ROUNDS), b"by-hand", event.encode())
    return f"requested a run of {task}{asked}; the controller starts it when none is active"


AT_ONCE = 500  # labels of a message
NUMBERS = ("seq", "time_us", "known_us")

label = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@label.callback()
def _group() -> None:
    """Labels that other systems know."""


@label.command("import")
def import_(
    task: TaskArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", exists=True, dir_okay=False)],
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    json: AsJson = False,
) -> None:
    """Send labels of a CSV file to the topic `labels`: workers store them, and devices learn from
    those of events that they have sent.

    The first line names the columns: device, label, one of event_id, time, time_us, or epoch and
    seq, and perhaps known or known_us, when the label became known. Nothing is sent if a line is
    wrong. A file that is imported again changes nothing that is read.
    """
    from streams.kafka.producer import Producer

    loaded = load_task(task)
    found: dict[str, list[bytes]] = {}
    with file.open(newline="", encoding="utf-8-sig") as lines:
        for device, label in _labels(loaded, csv.DictReader(lines)):
            found.setdefault(device, []).append(label)
    with closing(Producer(broker_of(state, kafka))) as producer:
        for device, labels in found.items():
            for at in range(0, len(labels), AT_ONCE):
                value = b"[" + b",".join(labels[at : at + AT_ONCE]) + b"]"
                producer.put(topic_name(loaded.id, LABELS), device.encode(), value)
    count = sum(map(len, found.values()))
    if json:
        print_json({"labels": count, "devices": len(found)})
        return
    say(f"{counted(count, 'label')} of {counted(len(found), 'device')} sent")


def _labels(task: Task, rows: "csv.DictReader[str]") -> Iterator[tuple[str, bytes]]:
    """Yield device and label of each line; raise UsageError for the first that is wrong."""
    try:
        if not (names := rows.fieldnames):
            raise UsageError("the file is empty: its first line names the columns")
        if unknown := set(names) - set(KnownLabel.__struct_fields__):
            raise UsageError(f"columns are unknown: {', '.join(sorted(unknown))}")
        for row in rows:
            if None in row:
                raise UsageError(f"line {rows.line_num}: more cells than columns")
            fields = {name: _value(task, name, text) for name, text in row.items() if text}
            value = encoded(fields)
            [(device, _)] = decode_known_labels(task, None, value)
            yield device, value
    except UnicodeDecodeError as exc:
        raise UsageError(f"the file is not UTF-8: {exc}") from exc
    except (MalformedRecord, ValueError, TypeError, AttributeError, csv.Error) as exc:
        raise UsageError(f"line {rows.line_num}: {exc}") from exc


def _value(task: Task, name: str, text: str) -> object:
    """Return a cell as JSON has it: a label may be a class's name or a number."""
    if name in NUMBERS:
        return int(text)
    if name != "label" or text in task.classes:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
