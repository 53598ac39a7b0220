"""Eviction from the store of samples: which segment is replaced by a new one.

Class-balanced reservoir sampling (Chrysakis and Moens, "Online Continual Learning from Imbalanced
Data", ICML 2020): a segment of the most frequent class is evicted; within a class every segment
ever seen stays with the same probability. Segments without a label are evicted first, those with a
true label last.
"""

import random

import numpy as np

UNLABELLED, TAUGHT, TRUE = 0, 1, 2


def row_to_evict(
    classes: np.ndarray, worth: np.ndarray, newest: int, seen: int, dice: random.Random
) -> int:
    """Return the row to evict, possibly `newest` itself.

    classes (n,) int and worth (n,) (UNLABELLED, TAUGHT or TRUE) of all rows including the newest;
    seen: the number of segments of the newest's class ever seen, including the newest.
    """
    counts = np.bincount(classes)
    largest = int(counts.argmax())
    rows = np.flatnonzero(classes == largest)
    rows = rows[worth[rows] == worth[rows].min()]
    others = rows[rows != newest]
    if len(others) < len(rows):
        stays = dice.random() < (counts[largest] - 1) / max(1, seen)
        if not len(others) or not stays:
            return newest
    return int(others[dice.randrange(len(others))])
