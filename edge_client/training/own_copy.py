"""A device's own copy of the served version, fine-tuned on its samples (`Training.personal`).

A copy is trained after a release, and again after every RENEW true labels, once there are enough
samples to train on: by the trainer, on a thread, because it takes long. Whether it answers is
decided by edge_client.inference.challenger.
"""

import logging
import threading
import time
from collections.abc import Callable

import safetensors.numpy

from edge_client.inference.challenger import Copy
from edge_client.inference.engine import Engine
from edge_client.inference.slots import Slots
from edge_client.samples.samples import Samples
from streams.contract.artifact import WEIGHTS
from streams.contract.errors import ArtifactError, MalformedRecord, ProcessFailed
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.contract.work import PERSONAL, WorkReply, WorkRequest

log = logging.getLogger(__name__)

RENEW = 64
PAUSE_S, PAUSE_MOST_S = 60.0, 1800.0  # between two trainings; the longest after failed ones
BUDGET_S = 30.0
EPOCHS, SHARE_OF_RATE = 10, 0.25  # of `Training.learning_rate`

Work = Callable[[WorkRequest, bytes], tuple[WorkReply, bytes]]


class OwnCopy:
    """Trains copies; `consider` is called by the keeper's thread."""

    def __init__(
        self,
        task: Task,
        slots: Slots,
        samples: Samples,
        work: Work,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._task, self._slots, self._samples = task, slots, samples
        self._work, self._clock, self._wall = work, clock, wall
        self._made: Copy | None = None
        self._tried_for: tuple[str, int] = ("", 0)  # the last copy: its base version and number
        self._labels_then = 0
        self._tried_at = float("-inf")
        self._failed: list[str] = []  # the base versions of trainings that failed, in a row
        self._training: threading.Thread | None = None

    def consider(self, base: Engine) -> Copy | None:
        """Return a copy that was trained since the last call; begin a training if one is due."""
        made, self._made = self._made, None
        if made is None and self._is_due(base):
            self._tried_at = self._clock()
            self._training = threading.Thread(
                target=self._train, args=(base.model,), name="own copy", daemon=True
            )
            self._training.start()
        return made

    def resume(self, base: str, number: int) -> None:
        """Take note of a copy that is there after a restart."""
        self._tried_for, self._labels_then = (base, number), self._samples.labels_told

    def stop(self) -> None:
        """Wait for a training that the trainer is stopping."""
        if self._training is not None:
            self._training.join(5.0)

    def _is_due(self, base: Engine) -> bool:
        if self._training is not None and self._training.is_alive():
            return False
        enough = self._samples.labels_told - self._labels_then >= RENEW
        pause_s = min(PAUSE_S * 2 ** self._failed.count(base.model), PAUSE_MOST_S)
        if not (base.model != self._tried_for[0] or enough):
            return False
        if self._clock() - self._tried_at < pause_s:
            return False
        return self._samples.trainable() >= self._task.training.minimum_samples

    def _train(self, base: str) -> None:
        """Train a copy; a failure is tried again after PAUSE_S, then after twice as long each time,
        so that the trainer's process ends meanwhile."""
        labels_now, made_us = self._samples.labels_told, int(self._wall() * 1e6)
        number = self._tried_for[1] + 1 if self._tried_for[0] == base else 1
        try:
            weights = self._trained(base, number)
        except (OSError, ArtifactError, MalformedRecord, ProcessFailed) as exc:
            self._failed = [*[m for m in self._failed if m == base][-10:], base]
            log.warning("no copy of %s: %s", base, exc)
            return
        self._failed = []
        self._tried_for, self._labels_then = (base, number), labels_now
        self._made = Copy(base, number, weights, made_us)

    def _trained(self, base: str, number: int) -> bytes:
        training = self._task.training
        request = WorkRequest(
            op="train", run=PERSONAL, round=0, task=self._task.name,
            task_version=self._task.version, base=base, epochs=EPOCHS,
            batch_size=training.batch_size,
            learning_rate=SHARE_OF_RATE * training.learning_rate, seed=number,
            time_budget_s=BUDGET_S,
        )  # fmt: skip
        reply, block = self._work(request, self._slots.kept(base).files[WEIGHTS])
        if reply.error is not None:
            raise ProcessFailed(reply.error)
        return safetensors.numpy.save(payload.unpack(block))
