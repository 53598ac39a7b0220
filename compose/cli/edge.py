"""`tidewheel edge`: run and maintain one device on its own machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from compose.cli import device
from compose.cli.arguments import (
    DEFAULT_STATE,
    LOOPBACK,
    AsJson,
    Device,
    Kafka,
    MetricsHost,
    MetricsPort,
    Speed,
    State,
    SuperlinkCa,
    TaskArgument,
    Trust,
    address,
    broker_from,
    configure_log,
    device_name,
    served_model,
    trusted_keys,
)
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import print_json
from streams.contract.errors import UsageError

if TYPE_CHECKING:
    from edge_client.sources.mqtt import MqttSettings


app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
for command in (device.status, device.drain, device.label, device.wipe):
    app.command()(command)


NodeKey = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The device's private key for the SuperLink; default: none."),
]


@app.command()
def supernode(
    device: Device,
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="The SuperLink.")],
    superlink_ca: SuperlinkCa = None,
    node_key: NodeKey = None,
    state: State = DEFAULT_STATE,
    pull: Annotated[
        float, typer.Option(min=0.05, max=600, help="Seconds between two requests for work.")
    ] = 3.0,
) -> None:
    """Run a resident SuperNode beside the device's agent, for runs that cannot invite it over
    Kafka. `edge run` needs none: a run that invites the device starts one."""
    from edge_client.control.socket_server import socket_path
    from edge_client.supernode import NodeSettings, run

    configure_log()
    run(
        NodeSettings(
            device=device_name(device),
            agent=str(socket_path(StateDir(state).device(device))),
            superlink=address(superlink),
            ca=str(superlink_ca or ""),
            key=str(node_key or ""),
            pull_s=pull,
            resident=True,
        )
    )


@app.command()
def run(
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
    speed: Speed = 1.0,
    passes: Annotated[
        int | None, typer.Option(min=1, help="Passes through the data; default: endless.")
    ] = None,
    stay: Annotated[
        bool,
        typer.Option("--stay", help="Continue after the readings have ended, without any."),
    ] = False,
    drain: Annotated[float, typer.Option(help="Seconds to send pending events at the end.")] = 10.0,
    min_battery: Annotated[
        int, typer.Option(min=0, max=100, help="Percent of charge below which it does not train.")
    ] = 30,
    max_temperature: Annotated[
        float, typer.Option(help="Degrees Celsius above which it does not train.")
    ] = 80.0,
    heartbeat: Annotated[
        float,
        typer.Option(
            min=0.1, max=20, help="Seconds between two states on `fleet` where nothing changes."
        ),
    ] = 10.0,
    gather: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds that an event may wait for more, so that messages are fewer; at most "
            "half of the task's idle_close_s.",
        ),
    ] = 0.0,
    uplink_limit: Annotated[
        float | None,
        typer.Option(min=0.1, help="Limit of KB (1,000 bytes) per second that are sent."),
    ] = None,
    metered: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="On a metered line: send this share of the events, a random sample, and drop the "
            "others; runs invite other devices first.",
        ),
    ] = 1.0,
    spool_mb: Annotated[float, typer.Option(min=0.1, help="Limit of the spool in MiB.")] = 256.0,
    spool_age: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Drop events after so many hours in the spool; default: never."
        ),
    ] = None,
    superlink_ca: SuperlinkCa = None,
    node_key: NodeKey = None,
    metrics_port: MetricsPort = None,
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
    from edge_client.process import run as serve
    from edge_client.settings import EdgeSettings
    from edge_client.spool.limits import SpoolLimits

    kind, mqtt = _source(source)
    layout = StateDir(state)
    configure_log()
    last = serve(
        EdgeSettings(
            task_ref=task,
            device=device_name(device),
            folder=layout.device(device),
            broker=broker_from(kafka),
            trusted=trusted_keys(layout, trust),
            model=model or served_model(layout),
            speed=speed,
            passes=passes,
            stay=stay,
            drain_s=drain,
            source=kind,
            mqtt=mqtt,
            minimum_battery=min_battery / 100,
            maximum_celsius=max_temperature,
            heartbeat_s=heartbeat,
            gather_s=gather,
            superlink_ca=superlink_ca,
            node_key=node_key,
            uplink_bytes_per_s=None if uplink_limit is None else round(1000 * uplink_limit),
            metered=metered,
            spool=SpoolLimits.under(
                round(spool_mb * 2**20),
                None if spool_age is None else 3600 * spool_age,
            ),
            metrics_port=metrics_port,
            metrics_host=metrics_host,
        )
    )
    if json:
        print_json(last.model_dump(mode="json"))


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
