"""Whether a device's update may enter the average: pure, one reason per refusal.

    reason            the update
    stale             answers work of too long ago (in `federation.rounds.update_intake`)
    task              is for another task, task version, or base model
    device-name       names no device
    duplicate         is the second of one device in this round
    keys              has tensors that the model has not, or lacks some
    shape, dtype      has a tensor of another shape or type
    not-finite        has a NaN or an infinity
    variance          has a batch norm's variance below zero, of which inference takes the root
    samples           was trained on no sample, or on more than a device can have or says it has
    replay            is to the byte what any device sent in an earlier round of the run
    norm              moves the weights more than NORM_FACTOR times as far as the usual update, or
                      further than a private run lets it

The norm is judged against the median of all updates known in the run, as soon as there are three:
fewer than half of the devices cannot move a median past the others. How a node's refusals add up is
in `federation.admission.quarantine`.
"""

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from federation.admission.update import Refusal, Update, Weights
from streams.contract.task import DEVICE_NAME
from streams.learning.clipping import update_norm

MAX_SAMPLES = 1_000_000
NORM_FACTOR = 5.0
NORMS_NEEDED = 3
CLIP_SLACK = 1.001  # float32 and float16 round


norm = update_norm  # of an update, from what was sent


@dataclass(frozen=True)
class Round:
    """What an update has to fit: the weights that were sent out, and what is known of the round.

    `reported` is how many samples devices said that they have, where that is known; `earlier` are
    digests of what earlier rounds of the run received; `clip` is how far a private run lets an
    update go, 0 for any distance.
    """

    task: str
    task_version: int
    base: str
    weights: Weights
    devices: frozenset[str] = frozenset()
    norms: Sequence[float] = ()
    reported: Mapping[str, int] = field(default_factory=dict)
    earlier: Set[bytes] = frozenset()
    clip: float = 0.0


def admit(update: Update, expected: Round) -> Refusal | None:
    """The first thing that is wrong with `update`; None when it may be averaged."""
    for check in (_origin, _tensors, _finite, _variance, _samples, _replay, _distance):
        if refusal := check(update, expected):
            return refusal
    return None


def well_formed(update: Update, expected: Round) -> bool:
    """Whether the update's norm can be computed and may count towards the median."""
    return _tensors(update, expected) is None and _finite(update, expected) is None


def digest(weights: Weights) -> bytes:
    """A name for these very bytes, shapes and types, in whatever order the tensors came."""
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        found.update(f"{name!r} {tensor.dtype} {tensor.shape} ".encode())
        found.update(np.ascontiguousarray(tensor).tobytes())
    return found.digest()


def _origin(update: Update, expected: Round) -> Refusal | None:
    have = (update.task, update.task_version, update.base)
    want = (expected.task, expected.task_version, expected.base)
    if have != want:
        text = "{} version {} from base {}"
        return Refusal("task", f"{text.format(*have)}, not {text.format(*want)}"[:300])
    if not DEVICE_NAME.fullmatch(update.device):
        return Refusal("device-name", f"{update.device[:80]!r} is no device's name")
    if update.device in expected.devices:
        return Refusal("duplicate", f"{update.device} has already answered in this round")
    return None


def _tensors(update: Update, expected: Round) -> Refusal | None:
    if set(update.weights) != set(expected.weights):
        difference = sorted(set(update.weights) ^ set(expected.weights))
        return Refusal("keys", f"tensors differ: {', '.join(difference)[:200]}")
    for name, tensor in expected.weights.items():
        found = update.weights[name]
        if found.shape != tensor.shape:
            return Refusal("shape", f"{name} is {found.shape}, not {tensor.shape}"[:300])
        if found.dtype != tensor.dtype:
            return Refusal("dtype", f"{name} is {found.dtype}, not {tensor.dtype}"[:300])
    return None


def _finite(update: Update, _expected: Round) -> Refusal | None:
    for name, tensor in update.weights.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            return Refusal("not-finite", f"{name} has a value that is not finite")
    return None


def _variance(update: Update, _expected: Round) -> Refusal | None:
    for name, tensor in update.weights.items():
        if name.rpartition(".")[2] == "running_var" and (tensor < 0).any():
            return Refusal("variance", f"{name} has a variance below zero")
    return None


def _samples(update: Update, expected: Round) -> Refusal | None:
    if not 1 <= update.samples <= MAX_SAMPLES:
        return Refusal("samples", f"{update.samples} samples; 1 to {MAX_SAMPLES} are possible")
    said = expected.reported.get(update.device)
    if said is not None and update.samples > said:
        return Refusal("samples", f"{update.samples} samples; the device said that it has {said}")
    return None


def _replay(update: Update, expected: Round) -> Refusal | None:
    if expected.earlier and digest(update.weights) in expected.earlier:
        return Refusal("replay", "to the byte what an earlier round received")
    return None


def _distance(update: Update, expected: Round) -> Refusal | None:
    if expected.clip and not norm(update.weights, expected.weights) <= CLIP_SLACK * expected.clip:
        return Refusal("norm", f"it is longer than {expected.clip:.3g}, to which it was to be cut")
    if len(expected.norms) < NORMS_NEEDED:
        return None
    usual = float(np.median(expected.norms))
    found = norm(update.weights, expected.weights)
    if not found <= NORM_FACTOR * usual:
        return Refusal("norm", f"{found:.3g} is over {NORM_FACTOR:.0f} times the usual {usual:.3g}")
    return None
