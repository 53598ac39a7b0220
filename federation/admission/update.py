"""A device's update on the server, and the reason to refuse one."""

from collections.abc import Mapping
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
