"""A device's update on the server, and the reason to refuse one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

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
