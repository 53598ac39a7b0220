"""The server's commands: `tidewheel controller`, `train`."""

import signal
import threading
import time
from contextlib import closing
from typing import Annotated, Any

import typer

from compose.cli.arguments import (
    DEFAULT_STATE,
    STAGES,
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
    checked_strategy,
    configure_log,
    options_of,
    shares_of,
    taking,
)
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import console
from federation.controller.settings import ControllerSettings
from streams.contract.documents import RoundEvent
from streams.contract.errors import UsageError
from streams.contract.task import NOTHING_LEARNS, absolute_reference, load_task
from streams.contract.topics import ROUNDS, topic_name
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
        config["registry"] = registry
    if rounds is not None:
        config["rounds"] = rounds
    if strategy is not None:
        config["strategy"] = checked_strategy(load_task(task), strategy)
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
