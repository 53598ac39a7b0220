"""A point between two sets of weights.

Weights that were fine-tuned from others answer what is new, and forget some of what the others
knew. On the line between both lie weights that have most of each: WiSE-FT (Wortsman et al. 2022,
arXiv 2109.01903), which takes the middle where nothing else is known.
"""

from collections.abc import Mapping

import numpy as np

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
