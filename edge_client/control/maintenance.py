"""Looking after a device on its own machine: asking the agent, or its folder when none runs.

While an agent serves the device it holds the folder, and everything goes over its socket. What is
done without one holds the folder itself meanwhile, so that no agent starts in the middle of it.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from edge_client.control.device_lock import hold
from edge_client.control.ipc import ask
from edge_client.control.socket_server import socket_path
from edge_client.samples.accuracy import AccuracyTracker
from edge_client.spool.queue import Spool
from edge_client.uplink.uplink import Uplink
from streams.contract.device import OWN, AgentReply, AgentRequest, Label
from streams.contract.documents import DeviceState
from streams.contract.errors import ProcessFailed, Retryable, UsageError
from streams.contract.task import Task
from streams.kafka.admin import probe
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings
from streams.runtime.acceptance import reset

PAUSE_S = 0.1
SEEN = ("spool", "samples.arrow", "personal.safetensors", OWN, "scoreboard.json", "replay.json")


def exists(folder: Path) -> Path:
    """The device's folder; UsageError where there is none."""
    if not (folder / "spool").is_dir():
        raise UsageError(f"there is no device in {folder}: name its --state and --device")
    return folder


def running(folder: Path) -> bool:
    """Whether an agent holds the device's folder."""
    try:
        hold(folder).close()
    except UsageError:
        return True
    return False


def state_of(task: Task, device: str, folder: Path) -> DeviceState:
    """What the agent says, or what its folder says when none runs."""
    if running(exists(folder)):
        answer = ask(socket_path(folder), AgentRequest(op="state"))
        if answer.state is None:
            raise ProcessFailed(f"the agent of {device} says nothing: {answer.error}")
        return answer.state
    handle = hold(folder)
    try:
        return stopped_state(task, device, folder, Spool(folder / "spool"))
    finally:
        handle.close()


def stopped_state(task: Task, device: str, folder: Path, spool: Spool) -> DeviceState:
    """The state of a device that nobody serves."""
    account, (active, previous) = spool.account(), _slots(folder)
    return DeviceState(
        device=device,
        task=task.name,
        time_us=time.time_ns() // 1000,
        epoch=spool.epoch,
        active=active or "",
        previous=previous,
        produced=account.produced,
        delivered=account.delivered,
        dropped=account.dropped,
        pending=account.pending,
        accuracy=AccuracyTracker(folder / "scoreboard.json").scores(),
        phase="stopped",
    )


def _slots(folder: Path) -> tuple[str | None, str | None]:
    """The active and the previous version as slots.json names them."""
    try:
        found = json.loads((folder / "slots" / "slots.json").read_bytes())
        names = found["active"], found["previous"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
    active, previous = (name if isinstance(name, str) else None for name in names)
    return active, previous


def label(folder: Path, labels: list[Label]) -> int:
    """Tell the running agent true labels; how many of its segments have got one."""
    answer = _ask_running(folder, AgentRequest(op="label", labels=labels))
    if answer.error is not None:
        raise UsageError(f"{answer.error}; {answer.labelled} segments were labelled before it")
    return answer.labelled


def _ask_running(folder: Path, question: AgentRequest) -> AgentReply:
    try:
        return ask(socket_path(exists(folder)), question)
    except Retryable as exc:
        raise ProcessFailed(f"no agent serves the device: `tidewheel edge run` ({exc})") from exc


def drain(
    task: Task,
    device: str,
    folder: Path,
    broker: BrokerSettings,
    timeout_s: float,
    say: Callable[[str], None],
) -> int:
    """End the device's agent and send what is pending within `timeout_s`; how many events are left.

    Without an agent the spool is sent from here.
    """
    deadline = time.monotonic() + timeout_s
    if running(exists(folder)):
        say(f"{device}: the agent is told to drain")
        _ask_running(folder, AgentRequest(op="drain", drain_s=timeout_s / 3))
        while running(folder):
            if time.monotonic() > deadline:
                raise ProcessFailed(f"the agent of {device} did not end in {timeout_s:.0f} s")
            time.sleep(PAUSE_S)
    handle = hold(folder)
    try:
        spool = Spool(folder / "spool")
        pending = spool.account().pending
        if not pending:
            return 0
        say(f"{device}: {pending} events are pending")
        uplink = Uplink(
            task,
            device,
            spool,
            lambda: Producer(broker),
            lambda: probe(broker),
            lambda: stopped_state(task, device, folder, spool),
        )
        uplink.start()
        uplink.stop(max(0.0, deadline - time.monotonic()))
        return spool.account().pending
    finally:
        handle.close()


def wipe(folder: Path, *, lose_pending: bool) -> int:
    """Delete what the device has seen, decisions too, and not its models: the next run begins a new
    epoch. How many pending events were lost; UsageError where there are some and they were not to
    be lost."""
    handle = hold(exists(folder))
    try:
        pending = Spool(folder / "spool").account().pending
        if pending and not lose_pending:
            raise UsageError(
                f"{pending} events are pending and would be lost: `tidewheel edge drain` first, "
                "or say --lose-pending"
            )
        for name in SEEN:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        reset(folder / "slots" / "accepted.json")
        return pending
    finally:
        handle.close()
