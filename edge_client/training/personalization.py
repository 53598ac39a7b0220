"""The personal model: a copy of the served version that is made for this device.

With `Training.personal` it is fine-tuned on the device's samples: after a release and again after
every RENEW true labels, once there are enough samples to train on. With `Training.adapt_norm` it is
the version with the batch norm statistics of the device's latest segments (normalization.py): once
there are LEAST of them, and again after every RENEW_SEEN further ones.

1. the trainer makes the copy's weights from the served version's
2. write them to `personal.safetensors` (temporary, fsync, rename), whose header names the version
   and the number of the personal model
3. build an engine from them and the version's graph
4. compare both on the device's held-out samples with a true label: the personal model answers only
   while it is right more often, on at least EVIDENCE of them, and they are of the classes that
   most of the device's segments have (choice.COVERED); repeated when these change. Statistics have
   learned from no label, so they are compared on the latest segments with a true label, of the
   same time as the statistics; those are few, so they must be better by the sign test of choice.py

After a crash in 1 it is made again; after 2, 3 or 4 the next start finds the file and compares
again. Another served version deletes the personal model. Its answers have the model name
`<version>.p<number>`, so windows and scores show it as a separate version; on `fleet` the device
reports the release. The weights never leave the device.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from edge_client.inference import choice
from edge_client.inference.choice import COVERED
from edge_client.inference.engine import Engine
from edge_client.inference.slots import Slots
from edge_client.samples.samples import Samples
from streams.contract.artifact import WEIGHTS, Artifact, personal_header
from streams.contract.documents import PersonalState
from streams.contract.errors import ArtifactError, MalformedRecord, ProcessFailed
from streams.contract.task import Task
from streams.contract.weights import payload
from streams.contract.work import PERSONAL, WorkReply, WorkRequest
from streams.learning.clipping import is_statistic
from streams.runtime.disk import write_atomic

log = logging.getLogger(__name__)

EVIDENCE, COMPARED = 8, 200
RENEW = 64
LEAST, RENEW_SEEN = 64, 256
PAUSE_S, PAUSE_MOST_S = 60.0, 1800.0  # between two trainings; the longest after failed ones
BUDGET_S = 30.0
EPOCHS, SHARE_OF_RATE = 10, 0.25  # of `Training.learning_rate`

Work = Callable[[WorkRequest, bytes], tuple[WorkReply, bytes]]


class Pair(NamedTuple):
    """The engines of the served version and of its personal model."""

    base: Engine
    personal: Engine


class Personalization:
    """Trains and serves the personal model; the loop calls `engine_for`, a thread `consider`."""

    def __init__(
        self,
        task: Task,
        device: str,
        folder: Path,
        slots: Slots,
        samples: Samples,
        work: Work,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task = task
        self._device = device
        self._path = folder / "personal.safetensors"
        self._slots = slots
        self._samples = samples
        self._work = work
        self._clock = clock
        self._pair: Pair | None = None
        self._serving: Pair | None = None
        self._number = 0
        self._compared_at = (-1, -1)  # held-out samples with a label, true labels ever
        self._tried_for: str | None = None  # the base version of the last training
        self._labels_then = self._seen_then = 0
        self._tried_at = float("-inf")
        self._failed: list[str] = []  # the base versions of trainings that failed, in a row
        self._training: threading.Thread | None = None
        self.state: PersonalState | None = None

    def engine_for(self, base: Engine) -> Engine:
        """Return the engine that answers while `base` is served."""
        serving = self._serving
        return serving.personal if serving is not None and serving.base is base else base

    def drop(self, reason: str) -> None:
        """Delete a personal model that failed; its base answers again."""
        pair, self._pair, self._serving = self._pair, None, None
        self.state = None
        if pair is not None:
            log.warning("%s is deleted: %s", pair.personal.model, reason)
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def consider(self) -> None:
        """Follow the served version, compare, and start a training if one is due."""
        base = self._slots.engine
        if base is None or not (self._tunes or self._task.training.adapt_norm):
            return
        if self._pair is None or self._pair.base is not base:
            self._take_up(base)
        self._compare()
        if self._due(base):
            self._begin(base)

    @property
    def _tunes(self) -> bool:
        return self._task.training.personal

    def stop(self) -> None:
        """Wait for a training that the trainer is stopping."""
        if self._training is not None:
            self._training.join(5.0)

    def _take_up(self, base: Engine) -> None:
        """Load the personal model from disk if `base` is its base."""
        self._pair = self._serving = self.state = None
        try:
            data = self._path.read_bytes()
            made_from, number = personal_header(data)
            if made_from != base.model:
                self._path.unlink(missing_ok=True)
                return
            self._build(base, data, number)
            self._tried_for = base.model
            self._labels_then, self._seen_then = self._samples.labels_told, self._samples.added
        except FileNotFoundError:
            return
        except (OSError, ArtifactError) as exc:
            log.warning("%s is ignored: %s", self._path, exc)
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _build(self, base: Engine, data: bytes, number: int) -> None:
        """Step 3: build the engine."""
        artifact = self._artifact(base)
        personal = Engine(self._task, artifact, weights=data)
        personal.model = f"{base.model}.p{number}"
        personal.latencies = base.latencies  # they count for the base version's trial
        self._number, self._compared_at = number, (-1, -1)
        self._pair = Pair(base, personal)

    def _artifact(self, base: Engine) -> Artifact:
        artifact = self._slots.artifact()
        if artifact.model != base.model:
            raise ArtifactError("name", f"{artifact.model} is served now, not {base.model}")
        return artifact

    def _compare(self) -> None:
        """Step 4: compare both models and decide which one answers."""
        pair = self._pair
        if pair is None:
            return
        segments, labels = self._evidence()
        now = len(labels), self._samples.labels_told
        if now == self._compared_at:
            return
        self._compared_at = now
        try:
            outputs = [_outputs(engine, segments) for engine in pair] if len(labels) else []
        except Exception as exc:  # onnxruntime may fail on the personal model's weights
            self.drop(f"failed: {exc}")
            return
        base, personal = [int(self._task.correct(each, labels).sum()) for each in outputs] or (0, 0)
        better = len(labels) >= EVIDENCE and personal > base
        better = better and (self._tunes or self._surely_better(outputs, labels))
        better = better and self._samples.covered(labels) >= COVERED
        if better != (self._serving is pair):
            log.info(
                "%s %s: %d of %d labelled samples correct, %s has %d", pair.personal.model,
                "answers" if better else "does not answer", personal, len(labels),
                pair.base.model, base,
            )  # fmt: skip
        if self._pair is pair:  # the loop has not deleted it meanwhile
            self._serving = pair if better else None
            self.state = PersonalState(
                model=pair.personal.model, base=pair.base.model, held_out=len(labels),
                correct=personal, base_correct=base, serving=better,
            )  # fmt: skip

    def _evidence(self) -> tuple[np.ndarray, np.ndarray]:
        """Return segments and labels that the copy has not learned from."""
        if self._tunes:
            return self._samples.held_out(COMPARED)
        segments, labels, known = self._samples.latest()
        return segments[known], labels[known]

    def _surely_better(self, outputs: list[np.ndarray], labels: np.ndarray) -> bool:
        base, own = (choice.losses(self._task, each, labels) for each in outputs)
        return choice.compare(self._task, own, base).keeps(keeping=True)

    def _due(self, base: Engine) -> bool:
        if self._training is not None and self._training.is_alive():
            return False
        fresh = self._samples.labels_told - self._labels_then
        enough = fresh >= RENEW
        if not self._tunes:
            enough = self._samples.added - self._seen_then >= RENEW_SEEN
        wanted = base.model != self._tried_for or enough
        pause_s = min(PAUSE_S * 2 ** self._failed.count(base.model), PAUSE_MOST_S)
        if not wanted or self._clock() - self._tried_at < pause_s:
            return False
        if not self._tunes:
            return self._samples.counts()[0] >= LEAST
        return self._samples.trainable() >= self._task.training.minimum_samples

    def _begin(self, base: Engine) -> None:
        """Start steps 1 to 3 on a thread, because training takes long."""
        self._tried_at = self._clock()
        self._training = threading.Thread(
            target=self._train, args=(base,), name="personal", daemon=True
        )
        self._training.start()

    def _train(self, base: Engine) -> None:
        """Steps 1 to 3; a failure is tried again after PAUSE_S, then after twice as long each time,
        so that the trainer's process ends meanwhile."""
        labels_now, seen_now = self._samples.labels_told, self._samples.added
        number = self._number + 1 if self._tried_for == base.model else 1
        try:
            self._make(base, number)
        except (OSError, ArtifactError, MalformedRecord, ProcessFailed) as exc:
            self._failed = [*[m for m in self._failed if m == base.model][-10:], base.model]
            log.warning("no personal model of %s: %s", base.model, exc)
            return
        self._failed = []
        self._tried_for = base.model
        self._labels_then, self._seen_then = labels_now, seen_now

    def _make(self, base: Engine, number: int) -> None:
        training = self._task.training
        request = WorkRequest(
            op="train" if self._tunes else "normalize", run=PERSONAL, round=0,
            task=self._task.name, task_version=self._task.version,
            base=base.model, epochs=EPOCHS, batch_size=training.batch_size,
            learning_rate=SHARE_OF_RATE * training.learning_rate, seed=number,
            time_budget_s=BUDGET_S,
        )  # fmt: skip
        served = self._artifact(base).files[WEIGHTS]
        if not self._tunes and not any(is_statistic(n) for n in safetensors.numpy.load(served)):
            raise ProcessFailed("the model has no batch norm whose statistics could be adapted")
        reply, weights = self._work(request, served)
        if reply.error is not None:
            raise ProcessFailed(reply.error)
        data = with_header(weights, base.model, number)
        write_atomic(self._path, data, mode=0o600)
        self._build(base, data, number)


def _outputs(engine: Engine, segments: np.ndarray) -> np.ndarray:
    return np.stack([engine.run(segment) for segment in segments])


def with_header(block: bytes, base: str, number: int) -> bytes:
    """Return the trainer's weights as safetensors, with their base version in the header."""
    tensors = payload.unpack(block)
    return safetensors.numpy.save(tensors, metadata={"base": base, "number": str(number)})
