"""`tidewheel edge`: one device, run and looked after on its own machine."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from compose.arguments import (
    DEFAULT_STATE,
    AsJson,
    Kafka,
    State,
    TaskArgument,
    Trust,
    broker_from,
    broker_of,
    configure_log,
    console,
    device_name,
    served_model,
    trusted_keys,
)
from compose.layout import Layout
from streams.contract.errors import ProcessFailed, UsageError
from streams.contract.task import load_task

if TYPE_CHECKING:
    from edge_client.mqtt import MqttSettings

Device = Annotated[str, typer.Option(help="The device's name.")]
AT_ONCE = 200  # labels in one question

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


class Drop(StrEnum):
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
        Drop, typer.Option(help="Which events give way first where --spool-mb is reached.")
    ] = Drop.oldest,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            help="Serve /metrics (Prometheus), /ready and /live on 127.0.0.1; 0: a free port.",
        ),
    ] = None,
) -> None:
    """Run one device: infer, keep events in the spool, forward them, follow releases.

    Works without a broker in reach. SIGTERM or Ctrl-C drains it.
    """
    from edge_client.agent import run as serve
    from edge_client.limits import SpoolLimits
    from edge_client.metering import Metering
    from edge_client.settings import EdgeSettings

    kind, mqtt = _source(source)
    layout = Layout(state)
    configure_log()
    serve(
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
            metering=Metering(metered.value, metered_share, uncertain_below),
            spool=SpoolLimits.under(
                round(spool_mb * 2**20),
                None if spool_age is None else 3600 * spool_age,
                spool_drop.value,
            ),
            metrics_port=metrics_port,
        )
    )


@app.command()
def status(
    task: TaskArgument, device: Device, state: State = DEFAULT_STATE, json: AsJson = False
) -> None:
    """Tell what the device on this machine is doing, whether its agent runs or not."""
    from edge_client.care import state_of

    layout = Layout(state)
    found = state_of(load_task(task), device_name(device), layout.device(device))
    if json:
        console().print_json(found.model_dump_json())
        return
    dropped = ", ".join(f"{count} {why}" for why, count in sorted(found.dropped.items())) or "0"
    lines = [
        f"{found.device}: {found.error or found.phase}, serves {found.active or 'no model'}"
        + (f", was {found.previous}" if found.previous else ""),
        f"epoch {found.epoch}: {found.produced} produced = {found.delivered} delivered + "
        f"{sum(found.dropped.values())} dropped ({dropped}) + {found.pending} pending",
        f"{found.samples} samples, {found.true_labels} with a true label, "
        f"{found.teacher_labels} with the teacher's; answers take "
        f"{found.latency_p50_us:.0f} us, {found.latency_p99_us:.0f} us at the 99th percentile",
    ]
    if (own := found.personal) is not None:
        lines.append(
            f"a copy of its own, {own.model}, {'answers' if own.serving else 'does not answer'}: "
            f"{own.correct} of {own.held_out} held-out samples right, {own.base} {own.base_correct}"
        )
    for line in lines:
        console().print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def drain(
    task: TaskArgument,
    device: Device,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds for all of it.")] = 60.0,
) -> None:
    """End the device's agent and send what is pending; exits 1 where something is left.

    Without an agent the spool is sent from here.
    """
    from edge_client import care

    loaded, folder = load_task(task), Layout(state).device(device_name(device))
    left = care.drain(loaded, device, folder, broker_of(state, kafka), timeout, _say)
    if left:
        raise ProcessFailed(f"{left} events of {device} are still pending: is a broker in reach?")
    _say(f"{device}: nothing is pending")


@app.command()
def label(
    task: TaskArgument,
    device: Device,
    state: State = DEFAULT_STATE,
    first: Annotated[
        int | None, typer.Option("--from", min=0, help="Microseconds since 1970: the first.")
    ] = None,
    last: Annotated[
        int | None, typer.Option("--to", min=0, help="The last; default: as --from.")
    ] = None,
    value: Annotated[
        str | None, typer.Option(help="The class's name or index, or the targets' values: 1.5,2.0.")
    ] = None,
) -> None:
    """Tell a running device the truth of what it saw in a span of time, to learn from.

    Without options lines of JSON are read from standard input:
    {"from_us": 1, "to_us": 2, "label": "walking"}.
    """
    from edge_client import care
    from edge_client.labels import parse_label, parse_line

    loaded, folder = load_task(task), Layout(state).device(device_name(device))
    if (first is None) != (value is None):
        raise UsageError("name --from and --value, or neither")
    if first is not None and value is not None:
        found = [parse_label(loaded, first, first if last is None else last, value)]
    else:
        found = [parse_line(loaded, n, line) for n, line in enumerate(sys.stdin, 1) if line.strip()]
    labelled = sum(
        care.label(folder, found[at : at + AT_ONCE]) for at in range(0, len(found), AT_ONCE)
    )
    _say(f"{device}: {labelled} segments have a true label")


@app.command()
def wipe(
    task: TaskArgument,
    device: Device,
    state: State = DEFAULT_STATE,
    lose_pending: Annotated[
        bool, typer.Option("--lose-pending", help="Also where events are not delivered yet.")
    ] = False,
) -> None:
    """Delete what a stopped device has seen: spool, samples, counts; its models stay.

    The next run begins a new epoch.
    """
    from edge_client import care

    load_task(task)
    lost = care.wipe(Layout(state).device(device_name(device)), lose_pending=lose_pending)
    _say(f"{device}: wiped" + (f", {lost} events lost" if lost else ""))


def _source(text: str) -> "tuple[Literal['task', 'stdin', 'mqtt'], MqttSettings | None]":
    """The kind of source that --source names, and its broker."""
    if text == "task":
        return "task", None
    if text == "stdin":
        return "stdin", None
    if text.startswith(("mqtt:", "mqtts:")):
        from edge_client.mqtt import settings_of

        return "mqtt", settings_of(text)
    raise UsageError(f"--source {text}: task, stdin, or mqtt://HOST:PORT/TOPIC")


def _say(text: str) -> None:
    console().print(text, markup=False, highlight=False, soft_wrap=True)
