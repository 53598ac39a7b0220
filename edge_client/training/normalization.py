"""A device's own normalization: the statistics of a model's batch norm, of the device's segments.

A served version normalizes by the mean and variance of what the fleet has sensed. Where a device
senses otherwise (another gain, another offset, a dead axis) those are wrong for it, and no label is
needed to replace them (AdaBN: Li et al. 2016, arXiv 1603.04779; against drift: Schneider et al.
2020, arXiv 2006.16971). Nothing else of the weights changes. Of SHARES of the way to the device's
own statistics the one is taken that answers most of the labelled segments correctly, and none of
it where the served ones do as well.
"""

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from streams.contract.task import Task
from streams.learning import learning
from streams.learning.clipping import Tensors, is_statistic

SHARES = (0.5, 1.0)
ROWS = 256  # segments of a forward pass


def normalized(
    task: Task, served: Tensors, segments: np.ndarray, labels: np.ndarray, true: np.ndarray
) -> tuple[dict[str, np.ndarray], float]:
    """Return the weights with the chosen statistics, and the share of the way: 0 for the served
    ones.

    segments: (n, channels, samples); labels: (n, label_size); true: (n,) bool, the rows whose label
    is known.
    """
    own = statistics(task, served, segments)
    best, share = _right(task, served, segments[true], labels[true]), 0.0
    found = dict(served)
    for each in SHARES:
        between = mixed(served, own, each)
        right = _right(task, between, segments[true], labels[true])
        if right > best:
            best, share, found = right, each, between
    return found, share


def statistics(task: Task, weights: Tensors, segments: np.ndarray) -> dict[str, np.ndarray]:
    """Return the running means and variances that these segments give, by name."""
    model = learning.load_state(task.build_model(), weights).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches
            module.train()
    with torch.no_grad():
        for at in range(0, len(segments), ROWS):
            part = segments[at : at + ROWS]
            if len(part) > 1:  # one row has no variance
                model(torch.from_numpy(part))
    state = model.state_dict()
    return {name: tensor.numpy().copy() for name, tensor in state.items() if is_statistic(name)}


def mixed(weights: Tensors, own: Tensors, share: float) -> dict[str, np.ndarray]:
    """Return `weights` with their statistics moved by `share` of the way to `own`."""
    return {
        name: ((1 - share) * value + share * own[name]).astype(value.dtype)
        if name in own
        else value
        for name, value in weights.items()
    }


def _right(task: Task, weights: Tensors, segments: np.ndarray, labels: np.ndarray) -> int:
    if not len(labels):
        return 0
    model = learning.load_state(task.build_model(), weights)
    return int(task.correct(learning.predict(model, segments), labels).sum())
