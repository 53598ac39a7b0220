"""`tidewheel edge status|drain|label|wipe`: maintenance of a device on its own machine."""

import sys
from typing import TYPE_CHECKING, Annotated

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
from compose.reports.terminal import print_json, say
from streams.contract.errors import ProcessFailed, UsageError
from streams.contract.task import load_task

if TYPE_CHECKING:
    from streams.contract.documents import DeviceState

AT_ONCE = 200  # labels per request


def status(
    task: TaskArgument, device: Device, state: State = DEFAULT_STATE, json: AsJson = False
) -> None:
    """Show the state of the device on this machine, whether its agent runs or not."""
    from edge_client.control.maintenance import state_of

    layout = StateDir(state)
    found = state_of(load_task(task), device_name(device), layout.device(device))
    if json:
        print_json(found.model_dump(mode="json"))
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
    if found.run is not None:
        lines.append(f"takes part in run {found.run}{', at work' if found.working else ''}")
    elif why := found.unable or found.held_back:
        lines.append(f"cannot take part in runs: {why}")
    groups = (
        ("made no event", found.skipped),
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
    from edge_client.control import maintenance

    loaded, folder = load_task(task), StateDir(state).device(device_name(device))
    tell = (lambda _text: None) if json else say
    left = maintenance.drain(loaded, device, folder, broker_of(state, kafka), timeout, tell)
    if json:
        print_json({"device": device, "pending": left})
    if left:
        raise ProcessFailed(f"{left} events of {device} are still pending: check the broker")
    tell(f"{device}: nothing is pending")


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
    """Give a running device true labels of a time span, to learn from.

    Without options it reads lines of JSON from standard input: {"from_us": 1, "to_us": 2, "label":
    "walking"}.
    """
    from edge_client.control import maintenance
    from edge_client.samples.labels import parse_label, parse_line

    loaded, folder = load_task(task), StateDir(state).device(device_name(device))
    if (first is None) != (value is None):
        raise UsageError("give --from and --value, or neither")
    if first is not None and value is not None:
        found = [parse_label(loaded, first, first if last is None else last, value)]
    else:
        found = [parse_line(loaded, n, line) for n, line in enumerate(sys.stdin, 1) if line.strip()]
    labelled = sum(
        maintenance.label(folder, found[at : at + AT_ONCE]) for at in range(0, len(found), AT_ONCE)
    )
    if json:
        print_json({"device": device, "labelled": labelled})
        return
    say(f"{device}: {labelled} segments have a true label")


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
    from edge_client.control import maintenance

    load_task(task)
    lost = maintenance.wipe(StateDir(state).device(device_name(device)), lose_pending=lose_pending)
    if json:
        print_json({"device": device, "lost": lost})
        return
    say(f"{device}: wiped" + (f", {lost} events lost" if lost else ""))
