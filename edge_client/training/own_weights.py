"""What a device trains for itself before or in place of the served weights, on its samples.

    adapter   with `Training.choice` "device": an input adapter (adapter_fit.py). It is fitted after
              a release and after a drift as soon as LEAST labels were told since then, or, if a
              drift lasts, from segments alone; then again when the labels are 1.5 times as many
              during a drift, else twice as many
    copy      with `Training.personal`, where no adapter answers: the served version, fine-tuned
              after a release, and again after every RENEW true labels

The trainer does the work, on a thread, because it takes long. Whether the result answers is decided
by edge_client.inference.challenger.
"""

import importlib.util
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import safetensors.numpy

from edge_client.inference import choice
from edge_client.inference.challenger import Trained
from edge_client.inference.engine import Engine
from edge_client.inference.slots import Slots
from edge_client.samples.samples import Samples
from streams.contract.artifact import DRIFT, WEIGHTS
from streams.contract.documents import Origin
from streams.contract.errors import ArtifactError, MalformedRecord, ProcessFailed
from streams.contract.task import MINIMUM_SAMPLES, Task
from streams.contract.task.channels import is_plain
from streams.contract.weights import payload
from streams.contract.work import PERSONAL, WorkReply, WorkRequest
from streams.learning.drift_reference import Reference
from streams.learning.input_adapter import BIAS, MOST_CHANNELS, WEIGHT

log = logging.getLogger(__name__)

RENEW = 64  # labels until another copy
MORE = {False: 2.0, True: 1.5}  # times as many labels until another adapter; during a drift
UNLABELLED = 150  # segments since a drift from which an adapter is fitted without labels
PAUSE_S, PAUSE_MOST_S = 60.0, 1800.0  # between two trainings; the longest after failed ones
DRIFT_PAUSE_S = 15.0  # during a drift
BUDGET_S = 120.0  # of the trainer's processor time
LIMIT_S = 1500.0  # by the clock: with a tenth of a core it has answered, else it hangs
USUAL = ("conditions: ", "stopped: ", "trainer: the agent is stopping")  # no defects
EPOCHS, SHARE_OF_RATE = 10, 0.25  # of `Training.learning_rate`

Work = Callable[[WorkRequest, bytes], tuple[WorkReply, bytes]]


class Tried(NamedTuple):
    """The last training of an origin: for which version and drift, its number, and the labels told
    and segments since the drift then."""

    base: str = ""
    since_us: int = 0
    number: int = 0
    labels: int = 0
    segments: int = 0


class OwnWeights:
    """Trains them; `consider` is called by the keeper's thread."""

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
        few = len(task.channels) <= MOST_CHANNELS and is_plain(task.channels)
        installed = importlib.util.find_spec("torch") is not None
        self._able = installed and task.learns
        self._adapts = task.training.choice == "device" and few
        if task.training.choice == "device" and not (few and self._able):
            why = "torch is not installed" if few else "categories, or too many channels"
            why = why if task.learns else "a model of ONNX does not learn"
            log.info("no input adapters: %s", why)
        self._made: Trained | None = None
        self._tried: dict[Origin, Tried] = {"adapter": Tried(), "copy": Tried()}
        self._tried_at = float("-inf")
        self._failed: list[str] = []  # the base versions of trainings that failed, in a row
        self.error: str | None = None  # why the last two failed, or more
        self._training: threading.Thread | None = None

    def consider(self, base: Engine, *, adapted: bool = False) -> Trained | None:
        """Return what was trained since the last call; begin a training if one is due. `adapted`:
        an adapter answers."""
        made, self._made = self._made, None
        if base.model not in self._failed[-1:]:
            self.error = None  # of an earlier version
        origin = self._due(base.model, adapted) if made is None and self._able else None
        if origin is not None:
            self._tried_at = self._clock()
            training = threading.Thread(
                target=self._train, args=(base.model, origin), name="own weights", daemon=True
            )
            training.start()
            self._training = training  # not before: `stop` joins it
        return made

    def resume(self, origin: Origin, base: str, number: int) -> None:
        """Take note of what is there after a restart."""
        self._tried[origin] = self._now(base, number)

    def stop(self, wait_s: float = 5.0) -> None:
        """Wait for a training that the trainer is stopping, or ends."""
        if self._training is not None:
            self._training.join(wait_s)

    def _now(self, base: str, number: int) -> Tried:
        samples = self._samples
        return Tried(base, samples.since_us, number, samples.labels_told, samples.added_since)

    def _due(self, base: str, adapted: bool) -> Origin | None:
        """Return what is to be trained now."""
        if self._training is not None and self._training.is_alive():
            return None
        if self._adapts and self._is_adapter_due(base):
            return "adapter"
        tried, samples = self._tried["copy"], self._samples
        enough = samples.labels_told - tried.labels >= RENEW
        if not self._task.training.personal or adapted or not (base != tried.base or enough):
            return None
        if self._waits(base) or samples.trainable() < MINIMUM_SAMPLES:
            return None
        return "copy"

    def _is_adapter_due(self, base: str) -> bool:
        tried, samples = self._tried["adapter"], self._samples
        labels, segments = samples.labels_since, samples.added_since
        if (base, samples.since_us) != tried[:2]:  # a release or a drift does not wait
            drifts = samples.drifting != ""
            enough = labels >= choice.LEAST or (drifts and segments >= UNLABELLED)
            return enough and not (self._failed[-1:] == [base] and self._waits(base))
        then = labels - (samples.labels_told - tried.labels)
        more = labels >= max(choice.LEAST, math.ceil(MORE[bool(samples.drifting)] * then))
        if labels < choice.LEAST and samples.drifting:
            more = segments >= 2 * tried.segments
        return more and not self._waits(base)

    def _waits(self, base: str) -> bool:
        """Whether the last training was too short a time ago."""
        return self._clock() - self._tried_at < self._pause_s(base)

    def _pause_s(self, base: str) -> float:
        """Return the time between two trainings: after failed ones twice as long each time, so that
        the trainer's process ends meanwhile."""
        usual_s = DRIFT_PAUSE_S if self._samples.drifting else PAUSE_S
        return min(usual_s * 2.0 ** self._failed.count(base), PAUSE_MOST_S)

    def _train(self, base: str, origin: Origin) -> None:
        made_us, before = int(self._wall() * 1e6), self._tried[origin]
        number = before.number + 1 if before.base == base else 1
        tried = self._now(base, number)
        try:
            made = self._trained(base, origin, number, made_us)
        except (OSError, ArtifactError, MalformedRecord, ProcessFailed) as exc:
            self._failed = [*[m for m in self._failed if m == base][-10:], base]
            self._tried_at = self._clock()  # a long one would leave no pause before the next
            text = f"no {origin} of {base}: {exc}"
            log.warning("%s; the next try is in %.0f s", text, self._pause_s(base))
            usual = str(exc).startswith(USUAL)
            self.error = text if self._failed.count(base) > 1 and not usual else None
            return
        self._failed, self.error = [], None
        if tried.since_us == self._samples.since_us:  # else the sensor has drifted meanwhile
            self._tried[origin], self._made = tried, made

    def _trained(self, base: str, origin: Origin, number: int, made_us: int) -> Trained:
        training = self._task.training
        request = WorkRequest(
            op="train" if origin == "copy" else "adapt", run=PERSONAL, round=0,
            task=self._task.name, task_version=self._task.version, base=base, epochs=EPOCHS,
            batch_size=training.batch_size,
            learning_rate=SHARE_OF_RATE * training.learning_rate, seed=number,
            time_budget_s=BUDGET_S, limit_s=LIMIT_S,
        )  # fmt: skip
        artifact = self._slots.kept(base)
        if origin == "adapter" and DRIFT in artifact.files:
            reference = Reference.decode(artifact.files[DRIFT])
            inputs = reference.inputs(self._task.channels)
            about = {"inputs": inputs, "drifting": bool(self._samples.drifting)}
            request = request.replace(**about)
        if WEIGHTS not in artifact.files:
            raise ArtifactError("files", f"{base} came without its floats")
        reply, block = self._work(request, artifact.files[WEIGHTS])
        if reply.error is not None:
            raise ProcessFailed(reply.error)
        if origin == "copy":
            weights = safetensors.numpy.save(payload.unpack(block))
            return Trained(origin, base, number, weights, made_us)
        found, metrics = safetensors.numpy.load(block), reply.metrics
        weights = safetensors.numpy.save({name: found[name] for name in (WEIGHT, BIAS)})
        columns = ("loss", "base_loss", "time", "less_surprise")
        compared = choice.compare(self._task, *(found[name] for name in columns))
        aligned = metrics["alignment"] <= choice.ALIGNED * metrics["base_alignment"]
        return Trained(
            origin, base, number, weights, made_us, compared, metrics["covered"], aligned
        )
