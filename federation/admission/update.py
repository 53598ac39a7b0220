"""A device's update as the server holds it, and why one is refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

Tensors = dict[str, np.ndarray]
Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Update:
    """What one device sent back; nothing in it is to be trusted.

    `staleness` is how many rounds ago its work was sent, and `sent` the weights that it then began
    with: None for those of the round. Both are the server's.
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
    """Why an update is not admitted: a slug to count by, and the details."""

    reason: str
    detail: str
