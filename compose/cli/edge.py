"""`tidewheel edge`: run and maintain one device on its own machine."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compose.cli.arguments import (
    DEFAULT_STATE,
    LOOPBACK,
    AsJson,
    Device,
    Kafka,
    MetricsHost,
    State,
    TaskArgument,
    Trust,
    address,
    broker_of,
    configure_log,
    device_name,
    options_of,
    served_model,
    taking,
    trusted_keys,
)
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import print_json, say
from edge_client.settings import EdgeSettings
from edge_client.spool.frames import SpoolLimits
from streams.contract.errors import ProcessFailed, UsageError
from streams.contract.task import load_task
from streams.kafka.settings import BrokerSettings

if TYPE_CHECKING:
    from edge_client.sources.mqtt import MqttSettings
    from streams.contract.documents import DeviceState


app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
log = logging.getLogger("tidewheel.edge")


def run_edge(
    options: dict[str, Any],
    task: TaskArgument,
    device: Device,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    source: Annotated[
        str,
        typer.Option(
            metavar="task|stdin|mqtt://HOST:PORT/TOPIC",
            help="The source of readings: the task's iterator, lines of JSON or CSV on "
            "standard input, or an MQTT broker (mqtts:// for TLS; TIDEWHEEL_MQTT_USERNAME, "
            "_PASSWORD, _CAFILE).",
        ),
    ] = "task",
    model: Annotated[
        Path | None,
        typer.Option(help="An artifact for a device without a model; default: the registry's."),
    ] = None,
    trust: Trust = None,
    min_battery: Annotated[
        int, typer.Option(min=0, max=100, help="Percent of charge below which it does not train.")
    ] = 30,
    uplink_limit: Annotated[
        float | None,
        typer.Option(min=0.1, help="Limit of KB (1,000 bytes) per second that are sent."),
    ] = None,
    spool_mb: Annotated[float, typer.Option(min=0.1, help="Limit of the spool in MiB.")] = 256.0,
    metrics_host: MetricsHost = LOOPBACK,
    json: AsJson = False,
) -> None:
    """Run one device: infer, store events in the spool, send them, follow releases, learn in the
    runs that invite it.

    Works without a broker. Without --superlink-ca it joins only runs whose SuperLink is on this
    machine. The end of the readings, SIGTERM and Ctrl-C drain the spool and end it.
    With --json it prints the device's state at the end.

    --source stdin reads JSON lines, {"time_us": 1760000000000000, "values": [0.1, 0.2], "label": 1}
    ("label" may be absent; or one field for each channel in place of "values"), or CSV with a
    header that names time_us, every channel and perhaps label.
    """
    from edge_client.participation import Joining
    from edge_client.process import run as serve
    from edge_client.supernode import files_of

    kind, mqtt = _source(source)
    layout = StateDir(state)
    configure_log()
    if (at := options["superlink"]) and not Joining(options["superlink_ca"]).allows(address(at)):
        raise UsageError(f"--superlink {at} is not on this machine: pass --superlink-ca")
    try:
        files_of(*(str(options[name] or "") for name in ("superlink_ca", "node_key")))
    except UsageError as exc:
        if not layout.device(device_name(device)).exists():
            raise
        log.warning("%s; %s answers, and takes part in no run", exc, device)
    last = serve(
        EdgeSettings(
            task_ref=task,
            device=device_name(device),
            folder=layout.device(device),
            broker=BrokerSettings.at(kafka),
            trusted=trusted_keys(layout, trust),
            model=model or served_model(layout),
            source=kind,
            mqtt=mqtt,
            minimum_battery=min_battery / 100,
            heartbeat_s=10.0 if options["speed"] == 1 else 1.0,  # a replay has who watches it
            uplink_bytes_per_s=None if uplink_limit is None else round(1000 * uplink_limit),
            spool=SpoolLimits.under(round(spool_mb * 2**20)),
            metrics_host=metrics_host,
            **options,
        )
    )
    if json:
        print_json(last.fields())


app.command("run")(taking(run_edge, options_of(EdgeSettings), dict))


def _source(text: str) -> "tuple[Literal['task', 'stdin', 'mqtt'], MqttSettings | None]":
    """Return the kind of source that --source names, and its MQTT broker."""
    if text == "task":
        return "task", None
    if text == "stdin":
        return "stdin", None
    if text.startswith(("mqtt:", "mqtts:")):
        from edge_client.sources.mqtt import settings_of

        return "mqtt", settings_of(text)
    raise UsageError(f"--source {text}: task, stdin, or mqtt://HOST:PORT/TOPIC")


# --- maintenance of a device on its own machine --------------------------------------------------

AT_ONCE = 200  # labels per request


@app.command()
def status(
    task: TaskArgument, device: Device, state: State = DEFAULT_STATE, json: AsJson = False
) -> None:
    """Show the state of the device on this machine, whether its agent runs or not."""
    from edge_client.maintenance import state_of

    layout = StateDir(state)
    found = state_of(load_task(task), device_name(device), layout.device(device))
    if json:
        print_json(found.fields())
        return
    dropped = ", ".join(f"{count} {why}" for why, count in sorted(found.dropped.items())) or "0"
    lines = [
        f"{found.device}: {found.error or found.phase}, serves {found.active or 'no model'}"
        + (f", was {found.previous}" if found.previous else ""),
        f"epoch {found.epoch}: {found.produced} produced = {found.delivered} delivered + "
        f"{sum(found.dropped.values())} dropped ({dropped}) + {found.pending} pending",
        f"{found.samples} samples, {found.true_labels} with a true label, "
        f"{found.teacher_labels} with the teacher's{_latency(found)}",
    ]
    if found.run is not None and (found.node is not None or not found.error):
        at_work, joined = ", at work" if found.working else "", found.node is not None
        lines.append(f"{'takes part in' if joined else 'joins'} run {found.run}{at_work}")
    elif why := found.unable or found.held_back:
        lines.append(f"cannot take part in runs: {why}")
    groups = (
        ("readings without an event", found.skipped),
        ("irregular", found.irregular),
        ("refused invitations to runs", found.refused_invitations),
    )
    for what, counts in groups:
        if counts:
            reasons = ", ".join(f"{why} {n}" for why, n in counts.items())
            lines.append(f"{what} since the agent's start: {reasons}")
    if found.challenger is not None:
        lines.append(f"{found.challenger.text} beside {found.challenger.base}")
    for line in lines:
        say(line)


def _latency(state: "DeviceState") -> str:
    """A stopped device gives no answers, so nothing is said of how long they take."""
    if not state.latency_p50_us:
        return ""
    return (
        f"; answers take {state.latency_p50_us:.0f} us, {state.latency_p99_us:.0f} us at the 99th "
        "percentile"
    )


@app.command()
def drain(
    task: TaskArgument,
    device: Device,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds in total.")] = 60.0,
    json: AsJson = False,
) -> None:
    """Stop the device's agent and send pending events; exits 1 if any are left.

    Without an agent this command sends them.
    """
    from edge_client import maintenance

    loaded, folder = load_task(task), StateDir(state).device(device_name(device))
    tell = (lambda _text: None) if json else say
    left = maintenance.drain(loaded, device, folder, broker_of(state, kafka), timeout, tell)
    if json:
        print_json({"device": device, "pending": left})
    if left:
        raise ProcessFailed(f"{left} events of {device} are still pending: check the broker")
    tell(f"{device}: nothing is pending")


@app.command()
def label(
    task: TaskArgument,
    device: Device,
    state: State = DEFAULT_STATE,
    json: AsJson = False,
) -> None:
    """Give a running device true labels of spans of time, to learn from.

    It reads lines of JSON from standard input, as {"from_us": 1, "to_us": 2, "label": "walking"}:
    microseconds since 1970, "to_us" as "from_us" where it is absent; the class's name or index, or
    the targets' values as a list.
    """
    from edge_client import maintenance
    from edge_client.samples.labels import parse_line

    loaded, folder = load_task(task), StateDir(state).device(device_name(device))
    maintenance.exists(folder)
    found = [parse_line(loaded, n, line) for n, line in enumerate(sys.stdin, 1) if line.strip()]
    labelled = sum(
        maintenance.label(folder, found[at : at + AT_ONCE]) for at in range(0, len(found), AT_ONCE)
    )
    if json:
        print_json({"device": device, "labelled": labelled})
        return
    say(f"{device}: {labelled} segments have a true label")


@app.command()
def wipe(
    task: TaskArgument,
    device: Device,
    state: State = DEFAULT_STATE,
    lose_pending: Annotated[
        bool, typer.Option("--lose-pending", help="Delete undelivered events too.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Delete a stopped device's data: spool, samples, counts, decisions; its models stay.

    The next run begins a new epoch.
    """
    from edge_client import maintenance

    load_task(task)
    lost = maintenance.wipe(StateDir(state).device(device_name(device)), lose_pending=lose_pending)
    if json:
        print_json({"device": device, "lost": lost})
        return
    say(f"{device}: wiped" + (f", {lost} events lost" if lost else ""))


@app.command()
def forget(
    task: TaskArgument, device: Device, state: State = DEFAULT_STATE, kafka: Kafka = None
) -> None:
    """Remove a device that will not return from the fleet: `status` no longer names it, and no
    share counts it. Run it anywhere. Its windows stay, and it is back as soon as it is heard."""
    from streams.fleet.following import forget_device

    say(forget_device(broker_of(state, kafka), load_task(task).id, device_name(device)))
