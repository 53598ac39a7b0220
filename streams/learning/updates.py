"""Updates of weights, without torch: their norm, and a point between two sets of weights.

For differential privacy a device clips its update as a whole (McMahan et al. 2018, arXiv
1710.06963, "flat clipping").

Weights that were fine-tuned from others answer what is new, and forget some of what the others
knew. On the line between both lie weights that have most of each: WiSE-FT (Wortsman et al. 2022,
arXiv 2109.01903), which takes the middle where nothing else is known.
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


SHARE = 0.5  # of the way that a run offers, unless all of it is shown to be better


def interpolated(
    base: Mapping[str, np.ndarray], learned: Mapping[str, np.ndarray], share: float
) -> dict[str, np.ndarray]:
    """Return the weights at `share` (0 to 1) of the way from `base` to `learned`; tensors that are
    no floats are those of `learned`."""
    return {name: _between(base[name], new, share) for name, new in learned.items()}


def _between(old: np.ndarray, new: np.ndarray, share: float) -> np.ndarray:
    if not np.issubdtype(new.dtype, np.floating):
        return new
    found = np.asarray(new).astype(np.float64)  # one copy: a tensor may be most of a model
    found -= old
    found *= share
    found += old
    return found.astype(new.dtype)
