"""Norm clipping of an update on the device, for differential privacy.

The update is clipped as a whole (McMahan et al. 2018, arXiv 1710.06963, "flat clipping").
"""

from collections.abc import Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]

BLOCK = 1 << 16  # numbers that are in double precision at a time: they fit into a cache
STATISTICS = ("running_mean", "running_var")  # torch's names for batch norm


def is_statistic(name: str) -> bool:
    """Return whether a tensor is a batch norm's running mean or variance."""
    return name.rpartition(".")[2] in STATISTICS


def update_norm(tensors: Tensors, before: Tensors) -> float:
    """Return the L2 norm of the difference over all floating-point tensors of `before`."""
    total = 0.0
    for name, old in before.items():
        flat, new = old.reshape(-1), tensors[name].reshape(-1)
        for at in range(0, flat.size if old.dtype.kind == "f" else 0, BLOCK):
            with np.errstate(over="ignore", invalid="ignore"):
                step = new[at : at + BLOCK].astype(np.float64)
                step -= flat[at : at + BLOCK]
                total += float(np.square(step).sum())
    return float(np.sqrt(total))


def clipped(trained: Tensors, received: Tensors, clip: float) -> dict[str, np.ndarray]:
    """Return `trained` with an update norm of at most `clip`.

    Batch norm statistics and integers keep their received values: the server adds no noise to them,
    so no change of them may leave the device.
    """
    kept = {n: t if _learned(n, t) else received[n] for n, t in trained.items()}
    found = update_norm(kept, received)
    if found <= clip:
        return kept
    return {
        n: (received[n] + (clip / found) * (t - received[n])).astype(t.dtype)
        if _learned(n, t)
        else t
        for n, t in kept.items()
    }


def _learned(name: str, tensor: np.ndarray) -> bool:
    return tensor.dtype.kind == "f" and not is_statistic(name)
