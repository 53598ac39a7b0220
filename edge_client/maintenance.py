"""Maintenance of a device on its own machine: through the agent, or its folder if none runs.

A running agent holds the folder's lock, and requests go over its socket. Without an agent these
functions hold the lock themselves, so that no agent starts meanwhile.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from edge_client.ipc import ask, hold, socket_path
from edge_client.samples.accuracy import AccuracyTracker
from edge_client.samples.labels import account_of
from edge_client.samples.samples import Samples
from edge_client.spool.cursor import Cursor
from edge_client.spool.frames import list_files
from edge_client.spool.queue import Spool, survey
from edge_client.uplink.task_queues import LABELS, SPOOL, queue_folder, queues
from streams.contract.accounting import DeviceAccount
from streams.contract.documents import DeviceState
from streams.contract.errors import ProcessFailed, Retryable, SpoolError, UsageError
from streams.contract.task import Task
from streams.contract.task.metrics import row_metric
from streams.contract.work import OWN, AgentReply, AgentRequest, Label
from streams.kafka.settings import BrokerSettings
from streams.runtime.trust import reset

PAUSE_S = 0.1


def account_in(folder: Path) -> tuple[str, DeviceAccount]:
    """Return the epoch and the account that the next open of a spool finds; "" and nothing without
    one. Nothing is changed, not even a torn end."""
    try:
        files, epoch = list_files(folder), folder / "epoch"
        if not files or not epoch.exists():
            return "", DeviceAccount(0, 0, {}, 0)
        cursor = Cursor.load(folder, files[0])
        produced = max(survey(files).next_seq, cursor.position.seq)
        return epoch.read_text().strip(), cursor.account(produced)
    except OSError as exc:
        raise SpoolError(f"the spool {folder} cannot be read: {exc}: check its disk") from exc


SEEN = (
    SPOOL, LABELS, "samples.rows", "challenger.safetensors", OWN, "scoreboard.json", "replay.json",
)  # fmt: skip


def exists(folder: Path) -> Path:
    """Return the device's folder; raise UsageError if it is missing."""
    if not (folder / SPOOL).is_dir():
        raise UsageError(f"there is no device in {folder}: check --state and --device")
    return folder


def running(folder: Path) -> bool:
    """Return whether an agent holds the folder's lock."""
    try:
        hold(folder).close()
    except UsageError:
        return True
    return False


def state_of(task: Task, device: str, folder: Path) -> DeviceState:
    """Return the state from the agent, or from the folder if none runs."""
    if running(exists(folder)):
        answer = ask(socket_path(folder), AgentRequest(op="state"))
        if answer.state is None:
            raise ProcessFailed(f"the agent of {device} reports no state: {answer.error}")
        return answer.state
    with hold(folder):
        _, labels = account_in(queue_folder(folder, LABELS, task))
        found = account_in(queue_folder(folder, SPOOL, task))
        return stopped_state(task, device, folder, *found, labels)


def stopped_state(
    task: Task, device: str, folder: Path, epoch: str, account: DeviceAccount, labels: DeviceAccount
) -> DeviceState:
    """Return the state of a device without an agent, with the accounts of its events and labels."""
    active, previous = _slots(folder)
    samples = Samples(task, folder / "samples.rows", epoch=epoch)
    return DeviceState(
        device=device,
        task=task.name,
        time_us=time.time_ns() // 1000,
        epoch=epoch,
        active=active or "",
        previous=previous,
        **vars(account),
        **samples.said(),
        late_labels=account_of(labels),
        accuracy=AccuracyTracker(folder / "scoreboard.json", row_metric(task)).scores(),
        phase="stopped",
    )


def _slots(folder: Path) -> tuple[str | None, str | None]:
    """Return the active and the previous version from slots.json."""
    try:
        found = json.loads((folder / "slots" / "slots.json").read_bytes())
        names = found["active"], found["previous"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
    active, previous = (name if isinstance(name, str) else None for name in names)
    return active, previous


def label(folder: Path, labels: list[Label]) -> int:
    """Send true labels to the agent; return how many segments were labelled."""
    answer = _ask_running(folder, AgentRequest(op="label", labels=labels))
    if answer.error is not None:
        raise UsageError(f"{answer.error}; {answer.labelled} segments were labelled before it")
    return answer.labelled


def _ask_running(folder: Path, question: AgentRequest) -> AgentReply:
    try:
        return ask(socket_path(exists(folder)), question)
    except Retryable as exc:
        raise ProcessFailed(
            f"no agent serves the device: start one with `tidewheel edge run` ({exc})"
        ) from exc


def drain(
    task: Task,
    device: str,
    folder: Path,
    broker: BrokerSettings,
    timeout_s: float,
    say: Callable[[str], None],
) -> int:
    """Stop the agent, send pending events for at most `timeout_s`, and return how many are left.

    Without an agent this process sends them.
    """
    from streams.kafka.producer import Producer  # Kafka's library: `edge status` need not wait

    deadline = time.monotonic() + timeout_s
    if running(exists(folder)):
        say(f"{device}: the agent drains its spool and stops")
        _ask_running(folder, AgentRequest(op="drain", drain_s=timeout_s / 3))
        while running(folder):
            if time.monotonic() > deadline:
                raise ProcessFailed(f"the agent of {device} did not end in {timeout_s:.0f} s")
            time.sleep(PAUSE_S)
    with hold(folder):
        labels, left = queue_folder(folder, LABELS, task), 0
        for queue in queues(folder, LABELS, SPOOL):
            spool = Spool(queue.folder)

            def said(spool: Spool = spool) -> DeviceState:
                account = spool.audit(), account_in(labels)[1]
                return stopped_state(task, device, folder, spool.epoch, *account)

            state = said if queue.folder == queue_folder(folder, SPOOL, task) else None
            if pending := spool.account().pending:
                what = "labels" if queue.kind == LABELS else "events"
                say(f"{device}: {pending} {what} are pending")
                uplink = queue.uplink(device, spool, lambda: Producer(broker), state)
                uplink.start()
                uplink.stop(max(0.0, deadline - time.monotonic()))
            left += spool.account().pending
        return left


def wipe(folder: Path, *, lose_pending: bool) -> int:
    """Delete the device's data and accepted decisions, but not its models; return how many pending
    events and labels were lost. The next run begins a new epoch.

    Raises UsageError if any are pending, unless `lose_pending`.
    """
    with hold(exists(folder)):
        pending = Counter[str]()
        for queue in queues(folder, SPOOL, LABELS):
            what = "labels" if queue.kind == LABELS else "events"
            pending[what] += Spool(queue.folder).account().pending
        if pending.total() and not lose_pending:
            what = " and ".join(f"{count} {each}" for each, count in pending.items() if count)
            raise UsageError(
                f"{what} are pending and would be lost: run `tidewheel edge drain` first, or use "
                "--lose-pending"
            )
        for name in SEEN:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        reset(folder / "slots")
        return pending.total()
