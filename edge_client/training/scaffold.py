"""SCAFFOLD's correction of a device's gradients, by what the device remembers.

Devices that see different things pull the weights in different directions, and a mean of what they
reach is not where they would go together. SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378)
therefore adds c - c_i to each gradient: c_i is a device's own mean gradient in the round before
(option II), c the mean of all. It sends both, which doubles a round's bytes, and gives a hostile
device a second thing to send.

A device can read both off the weights of two rounds. It received x and reached y with steps that
carry a gradient of one as far as `reach`; then it receives x', the mean of all. With a correction
of k in that round, its own gradients were (x - y) / reach - k, and those of all (x - x') / reach.
So the next correction is

    k' = k + (y - x') / reach

which is SCAFFOLD's where every device is in every round with as many steps; else it is near to it.
Nothing is sent. Without the round before (a first round, one that the device missed, another run)
the correction is zero, as in FedAvg. Where the weights did not move, the round failed, and k stays.

The file scaffold.safetensors (0600) has run, round, x's digest, reach, k and y. A training

1. reads it and finds k'; for the round that it is of, it is k again
2. trains
3. replaces the file (temporary, fsync, rename)
4. replies

so a crash before 3 leaves what the round began with, and after 3 the same round gets the same k. A
file that is unreadable or of another model is ignored; on a full disk the next correction is zero.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open
from torch import nn

from streams.contract.work import TrainerJob
from streams.learning.optimizers import MOMENTUM
from streams.runtime.disk import write_atomic

log = logging.getLogger(__name__)

Tensors = Mapping[str, np.ndarray]

CORRECTION, TRAINED = "k/", "y/"


@dataclass(frozen=True)
class Remembered:
    """A round that a device trained in: `sent` is the digest of what it received, `reach` how far
    its steps carried a gradient of one; tensors float32, by parameter."""

    run: str
    round: int
    sent: str
    reach: float
    correction: Tensors
    trained: Tensors


def reach(steps: int, rate: float) -> float:
    """Return how far `steps` steps of SGD with momentum carry a gradient of one."""
    return rate * sum((1 - MOMENTUM ** (k + 1)) / (1 - MOMENTUM) for k in range(steps))


def digest(tensors: Tensors) -> str:
    """Return the SHA-256 of tensors, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
    return total.hexdigest()


def correction(
    before: Remembered | None, run: str, number: int, received: Tensors
) -> dict[str, np.ndarray]:
    """Return what to add to the gradients of round `number`, float32 by parameter of `received`;
    nothing where the round before is not remembered."""
    if before is None or before.run != run or not _fits(before, received):
        return {}
    if before.round == number or (before.round == number - 1 and before.sent == digest(received)):
        return dict(before.correction)
    if before.round != number - 1:
        return {}
    return {
        name: (k + (before.trained[name] - received[name]) / before.reach).astype(np.float32)
        for name, k in before.correction.items()
    }


def _fits(before: Remembered, received: Tensors) -> bool:
    return set(before.correction) == set(before.trained) == set(received) and all(
        part[name].shape == value.shape
        for name, value in received.items()
        for part in (before.correction, before.trained)
    )


def read(path: Path) -> Remembered | None:
    """Return the round that is remembered; None if there is none, or no sound one."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["about"])
        tensors = safetensors.numpy.load(path.read_bytes())
        found = Remembered(
            str(about["run"]), int(about["round"]), str(about["sent"]), float(about["reach"]),
            *(_part(tensors, prefix) for prefix in (CORRECTION, TRAINED)),
        )  # fmt: skip
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as exc:
        log.warning("%s is ignored: %s", path, exc)
        return None
    finite = all(np.isfinite(value).all() for value in tensors.values())
    return found if finite and math.isfinite(found.reach) and found.reach > 0 else None


def _part(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def save(path: Path, found: Remembered) -> None:
    """Replace what is remembered."""
    about = {"run": found.run, "round": found.round, "sent": found.sent, "reach": found.reach}
    tensors = {CORRECTION + name: value for name, value in found.correction.items()}
    tensors |= {TRAINED + name: value for name, value in found.trained.items()}
    data = safetensors.numpy.save(tensors, {"about": json.dumps(about)})
    try:
        write_atomic(path, data, mode=0o600)
    except OSError as exc:  # a full disk does not prevent training
        log.warning("%s was not written: %s", path, exc)
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Steered:
    """A training in a run with SCAFFOLD: its correction and what it received, float32 by parameter
    that travels."""

    job: TrainerJob
    received: Tensors
    correction: Tensors

    @classmethod
    def of(cls, job: TrainerJob, model: nn.Module, received: Tensors) -> "Steered | None":
        """Return the request's; None if its run is without, or it is the device's own."""
        request = job.request
        if not request.scaffold or not job.scaffold:
            return None
        mine = {name: received[name] for name, _ in model.named_parameters() if name in received}
        before = read(Path(job.scaffold))
        found = correction(before, request.run, request.round, mine)
        zero = {name: np.zeros_like(value) for name, value in mine.items()}
        return cls(job, mine, found or zero)

    def remember(self, trained: Tensors, steps: int) -> None:
        """Write down what came of it, for the next round."""
        request, mine = self.job.request, {name: trained[name] for name in self.received}
        far = reach(steps, request.learning_rate)
        found = Remembered(
            request.run, request.round, digest(self.received), far, self.correction, mine
        )
        save(Path(self.job.scaffold), found)
