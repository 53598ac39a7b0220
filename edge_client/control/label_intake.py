"""Labels that a person on this machine gives, and the uplink of all labels of the device."""

import threading
from collections.abc import Sequence

import numpy as np

from edge_client.samples.labels import LabelQueue
from edge_client.samples.samples import USER, Samples
from edge_client.uplink.uplink import Uplink
from streams.contract.task import Task
from streams.contract.work import Label
from streams.segments.segmentation import label_fits


class LabelIntake:
    """Takes labels of a person on this machine; the uplink runs from the first label on."""

    def __init__(self, task: Task, samples: Samples, queue: LabelQueue, uplink: Uplink) -> None:
        self._task, self._samples, self._queue, self._uplink = task, samples, queue, uplink
        self._started = False
        self._starting = threading.Lock()  # a person and the agent's start may come together

    @property
    def hangs(self) -> bool:
        """Whether the uplink's thread does not come back."""
        return self._uplink.hangs

    def start(self, *, expected: bool) -> None:
        """Start the uplink if labels are `expected`, or wait from an earlier run."""
        with self._starting:
            if not self._started and (expected or self._queue.queue.account().pending):
                self._started = True
                self._uplink.start()

    def take(self, labels: Sequence[Label]) -> tuple[int, str | None]:
        """Label segments up to the first label that is none of the task; return how many, and what
        is wrong. They are on the disk, unless what is wrong says that they are not."""
        labelled, new, error = 0, False, None
        for given in labels:
            if not label_fits(self._task, given.label):
                error = f"{given.label} is no label of this task"
                break
            label = np.asarray(given.label, np.float32)
            labelled += self._queue.add(given.first_us, given.last_us, label, USER)
            new = True
        if new:
            try:
                self._keep()
            except OSError as exc:
                error = f"labels are in memory and not on the disk yet: {exc}"
        return labelled, error

    def _keep(self) -> None:
        """Write the new labels to the disk: what goes to the server, then the samples."""
        try:
            self._queue.flush()
            self._samples.save()
        except OSError:
            self._samples.urgent = True  # the keeper writes it later
            raise
        self.start(expected=True)

    def stop(self, drain_s: float) -> None:
        """Send what waits for at most `drain_s`."""
        self._queue.try_to_flush()
        if self._started:
            self._uplink.stop(drain_s)
