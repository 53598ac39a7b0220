"""`tidewheel edge status|drain|label|wipe`: looking after a device on its own machine."""

import sys
from typing import Annotated

import typer

from compose.cli.arguments import (
    DEFAULT_STATE,
    AsJson,
    Device,
    Kafka,
    State,
    TaskArgument,
    broker_of,
    device_name,
)
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import console
from streams.contract.errors import ProcessFailed, UsageError
from streams.contract.task import load_task

AT_ONCE = 200  # labels in one question


def status(
    task: TaskArgument, device: Device, state: State = DEFAULT_STATE, json: AsJson = False
) -> None:
    """Tell what the device on this machine is doing, whether its agent runs or not."""
    from edge_client.control.maintenance import state_of

    layout = StateDir(state)
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


def drain(
    task: TaskArgument,
    device: Device,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds for all of it.")] = 60.0,
    json: AsJson = False,
) -> None:
    """End the device's agent and send what is pending; exits 1 where something is left.

    Without an agent the spool is sent from here.
    """
    from edge_client.control import maintenance

    loaded, folder = load_task(task), StateDir(state).device(device_name(device))
    say = _nothing if json else _say
    left = maintenance.drain(loaded, device, folder, broker_of(state, kafka), timeout, say)
    if json:
        console().print_json(data={"device": device, "pending": left})
    if left:
        raise ProcessFailed(f"{left} events of {device} are still pending: is a broker in reach?")
    say(f"{device}: nothing is pending")


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
    json: AsJson = False,
) -> None:
    """Tell a running device the truth of what it saw in a span of time, to learn from.

    Without options lines of JSON are read from standard input:
    {"from_us": 1, "to_us": 2, "label": "walking"}.
    """
    from edge_client.control import maintenance
    from edge_client.samples.labels import parse_label, parse_line

    loaded, folder = load_task(task), StateDir(state).device(device_name(device))
    if (first is None) != (value is None):
        raise UsageError("name --from and --value, or neither")
    if first is not None and value is not None:
        found = [parse_label(loaded, first, first if last is None else last, value)]
    else:
        found = [parse_line(loaded, n, line) for n, line in enumerate(sys.stdin, 1) if line.strip()]
    labelled = sum(
        maintenance.label(folder, found[at : at + AT_ONCE]) for at in range(0, len(found), AT_ONCE)
    )
    if json:
        console().print_json(data={"device": device, "labelled": labelled})
        return
    _say(f"{device}: {labelled} segments have a true label")


def wipe(
    task: TaskArgument,
    device: Device,
    state: State = DEFAULT_STATE,
    lose_pending: Annotated[
        bool, typer.Option("--lose-pending", help="Also where events are not delivered yet.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Delete what a stopped device has seen: spool, samples, counts, decisions; its models stay.

    The next run begins a new epoch.
    """
    from edge_client.control import maintenance

    load_task(task)
    lost = maintenance.wipe(StateDir(state).device(device_name(device)), lose_pending=lose_pending)
    if json:
        console().print_json(data={"device": device, "lost": lost})
        return
    _say(f"{device}: wiped" + (f", {lost} events lost" if lost else ""))


def _say(text: str) -> None:
    console().print(text, markup=False, highlight=False, soft_wrap=True)


def _nothing(_text: str) -> None:
    """Said where JSON is asked for."""
