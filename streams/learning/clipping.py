"""Cutting an update to a length, as differential privacy needs it: on the device, before it leaves.

Clipping is of the update as a whole (McMahan et al. 2018, arXiv 1710.06963, "flat clipping").
"""

from collections.abc import Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]

STATISTICS = ("running_mean", "running_var")  # of batch norm, as torch names them


def is_statistic(name: str) -> bool:
    """Whether a tensor is a batch norm's running mean or variance."""
    return name.rpartition(".")[2] in STATISTICS


def update_norm(tensors: Tensors, before: Tensors) -> float:
    """The Euclidean length of the differences over all floating-point tensors of `before`."""
    total = 0.0
    for name, old in before.items():
        if old.dtype.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):
                step = tensors[name].astype(np.float64) - old.astype(np.float64)
                total += float(np.square(step).sum())
    return float(np.sqrt(total))


def clipped(trained: Tensors, received: Tensors, clip: float) -> dict[str, np.ndarray]:
    """`trained`, at most `clip` away from `received`. Statistics of batch norm and integers stay as
    they were received: no noise is added to them on the server, so nothing of them may leave."""
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
