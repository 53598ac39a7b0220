"""Admission: the checks that a device's update must pass to be averaged, one reason per refusal;
and the devices whose SuperNodes are registered.

    reason            the update
    stale             answers work of too many rounds ago (in `federation.rounds.update_intake`)
    task              is for another task, task version, or base model
    device-name       has an invalid device name
    duplicate         is a device's second one in this round
    keys              has tensors that were not sent, or lacks some that were
    shape, dtype      has a tensor of another shape or type
    not-finite        has a NaN or an infinity
    variance          has a negative batch norm variance, of which inference takes the root
    samples           claims no sample, or more than a device can have or has reported
    replay            is identical to one that any device sent in an earlier round of the run
    norm              has a norm over NORM_FACTOR times the usual one, or is far longer than the
                      model itself; in a private run has a norm over the clip

The usual norm is the median of all updates of the run, once there are three: a minority of devices
cannot move a median past the others. Until then an update may be UNKNOWN_FACTOR times as long as
the weights that were sent. `Quarantine` counts a node's refusals.

In a private run (`clip`) no check of an update's weights looks at other devices' updates: the norm
has a fixed bound, and there is no `replay`. Otherwise a device would decide by its own update which
others count, and change the sum by more than the clip that the accountant assumes.

A node with STRIKES refused updates gets no work in the next QUARANTINE_ROUNDS rounds of a run; then
its count starts again. The reasons `name` and `duplicate` are no strikes: of two nodes with the
same name the server cannot tell which one lies, and the honest one must not be excluded by the
other. `stale` and errors are no strikes either.

Where `<state>/keys/nodes/<device>/node.json` are, which compose.launcher.node_registry writes, a
node is one device's: its replies count under that name alone, and nodes that are not among them
belong to other tasks of the same SuperLink.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from streams.contract.documents import Document
from streams.contract.errors import MalformedRecord
from streams.contract.task import DEVICE_NAME
from streams.learning.updates import update_norm

Tensors = dict[str, np.ndarray]
Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Update:
    """The untrusted update of one device.

    `staleness` is how many rounds ago its work was sent, `sent` the weights that it started from,
    None for those of this round; both are set by the server.
    """

    device: str
    task: str
    task_version: int
    base: str
    samples: int
    weights: Weights
    metrics: Mapping[str, float] = field(default_factory=dict)
    staleness: int = 0
    sent: Weights | None = None

    @cached_property
    def norm(self) -> float:
        """How far it moves the weights that were sent."""
        return update_norm(self.weights, self.sent or {})

    @cached_property
    def digest(self) -> str:
        return digest(self.weights)


@dataclass(frozen=True)
class Refusal:
    """The reason to refuse an update: a slug to count by, and the details."""

    reason: str
    detail: str


CLAIM_FACTOR = 2.0


def most_claimed(claims: Sequence[float] | np.ndarray) -> float:
    """Return the most with which one of the devices may count, of what they claim to have: samples
    in a round's mean, rows at the gate.

    A device counts with CLAIM_FACTOR times the median claim at most. Where all have the same,
    devices that are less than a third of all then have less than half of the weight, whatever they
    claim. The median is over the claims, so it stays an honest one while liars are fewer than half;
    beside unequal honest claims they can raise it to one of the larger ones. One or two devices are
    not limited: no claim is above twice their mean.
    """
    return CLAIM_FACTOR * float(np.median(claims))


# --- the checks -----------------------------------------------------------------------------------

MAX_SAMPLES = 1_000_000
STRIKES = 2
QUARANTINE_ROUNDS = 3  # rounds
NO_STRIKE = frozenset({"name", "duplicate", "stale"})
NORM_FACTOR = 5.0
NORMS_NEEDED = 3
UNKNOWN_FACTOR = 10.0
CLIP_SLACK = 1.001  # for rounding to float32 and float16


@dataclass(frozen=True)
class Round:
    """What an update must fit: the weights that were sent, and the state of the round.

    `reported` are the numbers of samples that devices reported, where known; `earlier` are digests
    of the updates of earlier rounds; `clip` is a private run's largest norm, 0 for no limit.
    """

    task: str
    task_version: int
    base: str
    weights: Weights
    devices: frozenset[str] = frozenset()
    norms: Sequence[float] = ()
    reported: Mapping[str, int] = field(default_factory=dict)
    earlier: Set[str] = frozenset()
    clip: float = 0.0


def admit(update: Update, expected: Round) -> Refusal | None:
    """Return the first reason to refuse `update`; None if it may be averaged."""
    if update.sent is None:
        update = replace(update, sent=expected.weights)
    for check in (_origin, _tensors, _finite, _variance, _samples, _replay, _distance):
        if refusal := check(update, expected):
            return refusal
    return None


def well_formed(update: Update, expected: Round) -> bool:
    """Return whether the update's norm can be computed and counts towards the median."""
    return _tensors(update, expected) is None and _finite(update, expected) is None


def digest(weights: Weights) -> str:
    """Return the hexadecimal digest of the tensors' names, shapes, types and bytes."""
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        found.update(f"{name!r} {tensor.dtype} {tensor.shape} ".encode())
        found.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _origin(update: Update, expected: Round) -> Refusal | None:
    have = (update.task, update.task_version, update.base)
    want = (expected.task, expected.task_version, expected.base)
    if have != want:
        text = "{} version {} from base {}"
        return Refusal("task", f"{text.format(*have)}, not {text.format(*want)}"[:300])
    if not DEVICE_NAME.fullmatch(update.device):
        return Refusal("device-name", f"{update.device[:80]!r} is not a device's name")
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
        return Refusal("samples", f"{update.samples} samples; 1 to {MAX_SAMPLES} are allowed")
    reported = expected.reported.get(update.device)
    if reported is not None and update.samples > reported:
        return Refusal("samples", f"{update.samples} samples; the device reported {reported}")
    return None


def _replay(update: Update, expected: Round) -> Refusal | None:
    if not expected.clip and expected.earlier and update.digest in expected.earlier:
        return Refusal("replay", "identical to an update of an earlier round")
    return None


def _distance(update: Update, expected: Round) -> Refusal | None:
    found = update.norm
    if expected.clip:
        if found <= CLIP_SLACK * expected.clip:
            return None
        return Refusal("norm", f"{found:.3g} is over the clip of {expected.clip:.3g}")
    if len(expected.norms) < NORMS_NEEDED:
        zeros = {name: np.zeros_like(tensor) for name, tensor in expected.weights.items()}
        sent = max(update_norm(expected.weights, zeros), 1.0)
        if not found <= UNKNOWN_FACTOR * sent:
            about = f"{found:.3g} is over {UNKNOWN_FACTOR:.0f} times the model's own {sent:.3g}"
            return Refusal("norm", about)
        return None
    usual = float(np.median(expected.norms))
    if not found <= NORM_FACTOR * usual:
        return Refusal("norm", f"{found:.3g} is over {NORM_FACTOR:.0f} times the usual {usual:.3g}")
    return None


# --- quarantine -----------------------------------------------------------------------------------


class Quarantine(Document, forbid_unknown_fields=True):
    """The state by node, not by device name, because a refused update may lie about its name; part
    of a checkpoint.

    refused: nodes with a refusal, for any reason; received: digests of all rounds so far; until:
    the last round of a node's quarantine.
    """

    refused: set[int] = set()
    received: set[str] = set()
    strikes: dict[int, int] = {}
    until: dict[int, int] = {}

    def refuse(self, node: int, reason: str, number: int) -> None:
        """Record that an update of `node` was refused in round `number`."""
        self.refused.add(node)
        if reason in NO_STRIKE:
            return
        self.strikes[node] = self.strikes.get(node, 0) + 1
        if self.strikes[node] >= STRIKES:
            del self.strikes[node]
            self.until[node] = number + QUARANTINE_ROUNDS

    def quarantined_until(self, node: int, number: int) -> int | None:
        """Return the last round of the quarantine if round `number` is part of one."""
        until = self.until.get(node, 0)
        return until if number <= until else None

    def remember(self, sent: Iterable[Update]) -> None:
        """Record the updates of a round, admitted or not. Call it after the round: two devices may
        agree."""
        self.received.update(update.digest for update in sent)


# --- registered nodes -----------------------------------------------------------------------------

log = logging.getLogger(__name__)


class Node(Document):
    """The file node.json: a device, its public key (OpenSSH, no comment) and Flower's id of its
    node."""

    device: str
    public_key: str
    node: str


def registered(keys: Path) -> dict[int, str]:
    """Return the devices by node; none in a state folder that registered no node."""
    found: dict[int, str] = {}
    for path in sorted((keys / "nodes").glob("*/node.json")):
        try:
            entry = Node.decode(path.read_bytes())
            found[int(entry.node)] = entry.device
        except (OSError, MalformedRecord, ValueError) as exc:
            log.warning("%s cannot be read, its node takes no part: %s", path, exc)
    return found
