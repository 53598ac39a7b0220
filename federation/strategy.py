"""The weighted mean of admitted updates (FedAvg, McMahan et al. 2017, arXiv:1602.05629).

Flower's own aggregation is not used: it sums in the tensors' own precision, turns integer buffers
into floats, and weighs by whatever number of samples a device claims.
"""

from collections.abc import Sequence

import numpy as np

from federation.admission import Update, Weights

SAMPLES_CAP = 2048  # no device weighs more than this many samples


def aggregate(
    updates: Sequence[Update], base: Weights, cap: int = SAMPLES_CAP
) -> dict[str, np.ndarray]:
    """The mean of the updates' tensors, weighted by samples up to `cap`; keys and dtypes of `base`.

    Batch norm's running statistics are averaged like weights. Integer buffers (counters) keep the
    base's value, of which there is no meaningful mean.
    """
    if not updates:
        raise ValueError("nothing to aggregate: no update was admitted")
    shares = np.array([min(update.samples, cap) for update in updates], dtype=np.float64)
    shares /= shares.sum()
    mean = {}
    for name, before in base.items():
        if before.dtype.kind != "f":
            mean[name] = before
            continue
        total = np.zeros(before.shape, dtype=np.float64)
        for share, update in zip(shares, updates, strict=True):
            total += share * update.weights[name].astype(np.float64)
        mean[name] = total.astype(before.dtype)
    return mean
