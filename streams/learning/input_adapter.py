"""A device's input adapter: x' = W x + b, one map of the channels before a model. No torch.

W is (channels, channels), b (channels,), float32. It undoes what happens to a sensor: a gain, an
offset, a turned mount, an axis that is dead or in another's place. It is applied to a segment
before the graph: two microseconds for six channels, so nothing is folded into the first layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from streams.contract.errors import ArtifactError

WEIGHT, BIAS = "input/weight", "input/bias"  # no module of torch has a slash in its name
MOST_CHANNELS = 64  # of a task; W of more would be a model of its own


@dataclass(frozen=True)
class InputAdapter:
    weight: np.ndarray
    bias: np.ndarray

    def apply(self, segments: np.ndarray) -> np.ndarray:
        """Return segments (..., channels, samples) float32 as the model reads them."""
        found: np.ndarray = self.weight @ segments + self.bias[:, None]
        return found

    @property
    def changes_nothing(self) -> bool:
        return not self.bias.any() and np.array_equal(self.weight, np.eye(len(self.bias)))

    def tensors(self) -> dict[str, np.ndarray]:
        return {WEIGHT: self.weight, BIAS: self.bias}


def taken_from(
    tensors: Mapping[str, np.ndarray], channels: int
) -> tuple[InputAdapter | None, dict[str, np.ndarray]]:
    """Return the adapter among tensors, None for the identity or none, and the other tensors; raise
    ArtifactError for one that does not fit."""
    others = {name: value for name, value in tensors.items() if name not in (WEIGHT, BIAS)}
    if len(others) == len(tensors):
        return None, others
    weight, bias = (tensors.get(name, np.zeros(0)) for name in (WEIGHT, BIAS))
    shapes = weight.shape == (channels, channels) and bias.shape == (channels,)
    types = weight.dtype == bias.dtype == np.float32
    if not (shapes and types and np.isfinite(weight).all() and np.isfinite(bias).all()):
        found = f"{weight.dtype}{weight.shape} and {bias.dtype}{bias.shape}"
        raise ArtifactError("not-runnable", f"no input adapter of {channels} channels: {found}")
    adapter = InputAdapter(weight, bias)
    return None if adapter.changes_nothing else adapter, others
