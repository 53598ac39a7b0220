"""The queues of a device: one for the events and one for the labels of each task version.

    spool/<task>.v<version>.<layout>/     events; layout: their form, compact.Layout.text
    labels/<task>.v<version>.<layout>/    true labels that became known after their events

The names say how and to which topics the queue is sent, so an edited task has new queues, and what
the earlier ones still have is sent as it is to the topics of its own version:

1. an earlier queue has its own uplink; the one of events reports to `fleet` of its version how many
   are pending, and that the device has stopped there
2. when nothing is pending, the last report is sent and the queue is removed

After a crash in 1 or 2 the next start finds the queue again.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.spool.queue import Spool
from edge_client.uplink.messages import of_events, of_labels
from edge_client.uplink.uplink import Uplink
from streams.contract.documents import DeviceState
from streams.contract.events.compact import Layout
from streams.contract.events.messages import task_layout
from streams.contract.task import Task

if TYPE_CHECKING:  # Kafka's library, which the first answer does not wait for
    from streams.kafka.producer import Sender

SPOOL, LABELS = "spool", "labels"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskQueue:
    """A queue in a device's folder; task: the id of the task version."""

    kind: str
    task: str
    layout: Layout
    folder: Path

    def uplink(
        self,
        device: str,
        spool: Spool,
        connect: "Callable[[], Sender]",
        state: Callable[[], DeviceState] | None = None,
        bytes_per_s: int | None = None,
    ) -> Uplink:
        """Return what sends the queue; without a `state` the device has stopped, of this task
        version."""
        if self.kind == LABELS:
            messages = of_labels(device, spool)
        else:
            messages = of_events(self.layout, device, spool)
            state = state or partial(self._stopped, device, spool)
        return Uplink(
            self.task, device, spool, messages, connect, state,
            bytes_per_s=bytes_per_s,
        )  # fmt: skip

    def _stopped(self, device: str, spool: Spool) -> DeviceState:
        name, time_us = self.task.rpartition(".v")[0], time.time_ns() // 1000
        return DeviceState(
            device=device, task=name, time_us=time_us, epoch=spool.epoch, active="",
            phase="stopped", **vars(spool.account()),
        )  # fmt: skip


def queue_folder(device: Path, kind: str, task: Task) -> Path:
    """Return where the device's queue of the task version is."""
    return device / kind / f"{task.id}.{task_layout(task).text}"


def queues(device: Path, *kinds: str) -> Iterator[TaskQueue]:
    """Yield the queues in the device's folder."""
    for kind in kinds:
        for path in sorted((device / kind).glob("*.v*.*")):
            task, _, text = path.name.rpartition(".")
            with suppress(ValueError):
                yield TaskQueue(kind, task, Layout.of(text), path)


class EarlierQueues:
    """Sends and removes the queues of all task versions but this one."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        device: str,
        connect: "Callable[[], Sender]",
        bytes_per_s: int | None = None,
    ) -> None:
        self._left: list[tuple[Spool, Uplink]] = []
        for found in queues(folder, LABELS, SPOOL):
            if found.folder == queue_folder(folder, found.kind, task):
                continue
            spool = Spool(found.folder)
            uplink = found.uplink(device, spool, connect, bytes_per_s=bytes_per_s)
            self._left.append((spool, uplink))
            if pending := spool.account().pending:
                what = f"{'label' if found.kind == LABELS else 'event'}{'s' * (pending > 1)}"
                log.info("%s: still pending of %s: %d %s", device, found.task, pending, what)

    @property
    def hangs(self) -> bool:
        """Whether an uplink's thread does not come back."""
        return any(uplink.hangs for _, uplink in self._left)

    def start(self) -> None:
        for _, uplink in self._left:
            uplink.start()

    def look(self) -> None:
        """Remove the queues that are sent."""
        for spool, uplink in list(self._left):
            if uplink.connected and not spool.account().pending:
                uplink.stop(0.0)
                shutil.rmtree(spool.folder, ignore_errors=True)
                self._left.remove((spool, uplink))

    def stop(self, drain_s: float) -> None:
        """Send what is left for at most `drain_s`."""
        deadline = time.monotonic() + drain_s
        for _, uplink in self._left:
            uplink.stop(max(0.0, deadline - time.monotonic()))
