"""`tidewheel edge`: run and maintain one device on its own machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compose.cli import device
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
    broker_from,
    configure_log,
    device_name,
    options_of,
    served_model,
    taking,
    trusted_keys,
)
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import print_json
from edge_client.settings import EdgeSettings
from edge_client.spool.limits import SpoolLimits
from streams.contract.errors import UsageError

if TYPE_CHECKING:
    from edge_client.sources.mqtt import MqttSettings


app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
for command in (device.status, device.drain, device.label, device.wipe):
    app.command()(command)


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
    spool_age: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Drop events after so many hours in the spool; default: never."
        ),
    ] = None,
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
            source=kind,
            mqtt=mqtt,
            minimum_battery=min_battery / 100,
            heartbeat_s=10.0 if options["speed"] == 1 else 1.0,  # a replay has who watches it
            uplink_bytes_per_s=None if uplink_limit is None else round(1000 * uplink_limit),
            spool=SpoolLimits.under(
                round(spool_mb * 2**20),
                None if spool_age is None else 3600 * spool_age,
            ),
            metrics_host=metrics_host,
            **options,
        )
    )
    if json:
        print_json(last.model_dump(mode="json"))


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
