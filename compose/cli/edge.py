"""`tidewheel edge`: one device, run and looked after on its own machine."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from compose.cli import device
from compose.cli.arguments import (
    DEFAULT_STATE,
    AsJson,
    Device,
    Kafka,
    MetricsPort,
    State,
    TaskArgument,
    Trust,
    broker_from,
    configure_log,
    device_name,
    served_model,
    trusted_keys,
)
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import console
from streams.contract.errors import UsageError

if TYPE_CHECKING:
    from edge_client.sources.mqtt import MqttSettings


app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
for command in (device.status, device.drain, device.label, device.wipe):
    app.command()(command)


class EvictionOrder(StrEnum):
    oldest = "oldest"
    newest = "newest"


class Metered(StrEnum):
    everything = "everything"
    sampled = "sampled"
    uncertain = "uncertain"
    nothing = "nothing"


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
            help="Where readings come from: the task's own iterator, lines of JSON or CSV on "
            "standard input, or an MQTT broker (mqtts:// for TLS; TIDEWHEEL_MQTT_USERNAME, "
            "_PASSWORD, _CAFILE).",
        ),
    ] = "task",
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
    min_battery: Annotated[
        int, typer.Option(min=0, max=100, help="Percent of charge below which it does not train.")
    ] = 30,
    max_temperature: Annotated[
        float, typer.Option(help="Degrees Celsius above which it does not train.")
    ] = 80.0,
    uplink_limit: Annotated[
        float | None,
        typer.Option(min=0.1, help="Send at most so many KB (1,000 bytes) a second."),
    ] = None,
    metered: Annotated[
        Metered,
        typer.Option(
            help="What of the events is sent: everything, a share, the uncertain and the labelled, "
            "or nothing for now. The second and third drop the rest, the last keeps it."
        ),
    ] = Metered.everything,
    metered_share: Annotated[
        float, typer.Option(min=0, max=1, help="The share of --metered sampled.")
    ] = 0.1,
    uncertain_below: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Largest softmax of an uncertain event: what --metered uncertain sends and what "
            "a full spool keeps longest.",
        ),
    ] = 0.8,
    spool_mb: Annotated[
        float, typer.Option(min=0.1, help="MiB that events may take while they wait.")
    ] = 256.0,
    spool_age: Annotated[
        float | None,
        typer.Option(min=0.01, help="Drop events that have waited so many hours; default: never."),
    ] = None,
    spool_drop: Annotated[
        EvictionOrder, typer.Option(help="Which events give way first where --spool-mb is reached.")
    ] = EvictionOrder.oldest,
    metrics_port: MetricsPort = None,
    json: AsJson = False,
) -> None:
    """Run one device: infer, keep events in the spool, forward them, follow releases.

    Works without a broker in reach. SIGTERM or Ctrl-C drains it. With --json it prints at the end
    what it has done.
    """
    from edge_client.agent import run as serve
    from edge_client.settings import EdgeSettings
    from edge_client.spool.limits import SpoolLimits
    from edge_client.spool.sampling import Sampling

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
            drain_s=drain,
            source=kind,
            mqtt=mqtt,
            minimum_battery=min_battery / 100,
            maximum_celsius=max_temperature,
            uplink_bytes_per_s=None if uplink_limit is None else round(1000 * uplink_limit),
            sampling=Sampling(metered.value, metered_share, uncertain_below),
            spool=SpoolLimits.under(
                round(spool_mb * 2**20),
                None if spool_age is None else 3600 * spool_age,
                spool_drop.value,
            ),
            metrics_port=metrics_port,
        )
    )
    if json:
        console().print_json(last.model_dump_json())


def _source(text: str) -> "tuple[Literal['task', 'stdin', 'mqtt'], MqttSettings | None]":
    """The kind of source that --source names, and its broker."""
    if text == "task":
        return "task", None
    if text == "stdin":
        return "stdin", None
    if text.startswith(("mqtt:", "mqtts:")):
        from edge_client.sources.mqtt import settings_of

        return "mqtt", settings_of(text)
    raise UsageError(f"--source {text}: task, stdin, or mqtt://HOST:PORT/TOPIC")
