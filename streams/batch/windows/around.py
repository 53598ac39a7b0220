"""In which shards the rows of a shard's windows are.

A window's rows may lie in several shards, and a teacher needs all of them. Of each window the
planning keeps a hash of 8 bytes for each shard that has rows of it: of two windows with one hash
the shards that are read are too many, never too few.
"""

from collections.abc import Callable, Iterable

import numpy as np

from streams.batch.records.documents import Plan
from streams.batch.windows.keys import Key


def plan_windows(plan: Plan, keys_in: Callable[[int], Iterable[Key]]) -> Plan:
    """Return a plan whose shards name those around them; `keys_in` yields the keys of a shard."""
    hashes, owners = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number in range(len(plan.shards)):
        found = {hash((key.device, key.window)) for key in keys_in(number)}
        hashes.append(np.fromiter(found, np.int64, len(found)))
        owners.append(np.full(len(found), number))
    first, last = _extents(np.concatenate(hashes), np.concatenate(owners), len(plan.shards))
    shards = [
        shard.model_copy(update={"around": (int(low), int(high))})
        for shard, low, high in zip(plan.shards, first, last, strict=True)
    ]
    return plan.model_copy(update={"shards": shards})


def _extents(hashes: np.ndarray, owners: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each shard the first and the last one that share a window with it."""
    first, last = np.arange(count), np.arange(count)
    _, window = np.unique(hashes, return_inverse=True)
    windows = int(window.max(initial=-1)) + 1
    low, high = np.full(windows, count), np.full(windows, -1)
    np.minimum.at(low, window, owners)
    np.maximum.at(high, window, owners)
    np.minimum.at(first, owners, low[window])
    np.maximum.at(last, owners, high[window])
    return first, last
