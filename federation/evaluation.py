"""How good a candidate is, and whether that is good enough: figures and the gate.

Two kinds of evidence: the people held out centrally, evaluated here, and the segments that each
device keeps out of its training, counted by the devices themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from streams.contract.task import Task

CENTRAL_TOLERANCE = 0.01  # by how much held-out people may do worse while the fleet gains
DEVICE_CAP = 2048  # no device's figures weigh more than this many segments
ROUNDING = 1e-9  # a gain of exactly the margin passes, whatever its last bit
EVALUATED_NEEDED = 20  # segments on all devices together, fewer decide nothing


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `evaluated` answers; for regression, correct is within the task's tolerance."""

    correct: float = 0.0
    evaluated: float = 0.0

    @property
    def share(self) -> float:
        return self.correct / self.evaluated if self.evaluated else 0.0


@dataclass(frozen=True)
class Verdict:
    promote: bool
    reason: str


@dataclass(frozen=True)
class HeldOut:
    """Central labelled segments: (n, channels, samples) and (n, label_size)."""

    segments: np.ndarray
    labels: np.ndarray

    def encode(self) -> bytes:
        return safetensors.numpy.save({"segments": self.segments, "labels": self.labels})

    @classmethod
    def decode(cls, data: bytes | None, task: Task) -> "HeldOut":
        """What `encode` gave; nothing where the task has no people held out."""
        if data is None:
            shape = (0, *task.segment_shape)
            return cls(np.zeros(shape, np.float32), np.zeros((0, task.label_size), np.float32))
        tensors = safetensors.numpy.load(data)
        return cls(tensors["segments"], tensors["labels"])


def score(task: Task, outputs: np.ndarray, labels: np.ndarray) -> Accuracy:
    """(n, outputs) against (n, label_size)."""
    if not len(labels):
        return Accuracy()
    return Accuracy(float(task.correct(outputs, labels).sum()), float(len(labels)))


def reported(metrics: Mapping[str, float]) -> Accuracy | None:
    """A device's own figures, capped; None when they are missing or impossible."""
    correct, evaluated = metrics.get("correct", 0.0), metrics.get("evaluated", 0.0)
    if not (np.isfinite([correct, evaluated]).all() and 0 <= correct <= evaluated and evaluated):
        return None
    scale = min(1.0, DEVICE_CAP / evaluated)
    return Accuracy(correct * scale, evaluated * scale)


def paired(
    base: Mapping[str, Accuracy], candidate: Mapping[str, Accuracy]
) -> tuple[Accuracy, Accuracy]:
    """Both models over the devices that evaluated both: one that came or went biases nothing."""
    devices = sorted(set(base) & set(candidate))
    return total([base[d] for d in devices]), total([candidate[d] for d in devices])


def total(parts: list[Accuracy]) -> Accuracy:
    return Accuracy(sum(p.correct for p in parts), sum(p.evaluated for p in parts))


def decide(
    central_base: Accuracy,
    central_candidate: Accuracy,
    fleet_base: Accuracy,
    fleet_candidate: Accuracy,
    margin: float,
) -> Verdict:
    """The gate. The fleet's own segments have to gain `margin` while the people held out do not
    lose; where too little was evaluated on devices, the people held out have to gain it."""
    central_gain = central_candidate.share - central_base.share
    central = f"held-out {central_base.share:.3f} to {central_candidate.share:.3f}"
    if min(fleet_base.evaluated, fleet_candidate.evaluated) >= EVALUATED_NEEDED:
        gain = fleet_candidate.share - fleet_base.share
        fleet = f"on devices {fleet_base.share:.3f} to {fleet_candidate.share:.3f}"
        if gain < margin - ROUNDING:
            return Verdict(False, f"{fleet} gains less than {margin:.3f}")
        if central_base.evaluated and central_gain < -CENTRAL_TOLERANCE - ROUNDING:
            return Verdict(False, f"{central} loses more than {CENTRAL_TOLERANCE:.3f}")
        return Verdict(True, f"{fleet}, {central}" if central_base.evaluated else fleet)
    if not central_base.evaluated:
        return Verdict(False, "nothing was evaluated: no held-out people and no device's segments")
    if central_gain < margin - ROUNDING:
        return Verdict(False, f"{central} gains less than {margin:.3f}; no device evaluated both")
    return Verdict(True, f"{central}; no device evaluated both")
