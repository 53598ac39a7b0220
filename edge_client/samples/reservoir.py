"""Which remembered segment gives way to a new one.

Class-balanced reservoir sampling (Chrysakis and Moens, "Online Continual Learning from Imbalanced
Data", ICML 2020): the most frequent class gives way, and within it each segment that was ever seen
stays with the same probability. Of its segments those without a label go first, those with a true
label last.
"""

import random

import numpy as np

UNLABELLED, TAUGHT, TRUE = 0, 1, 2


def row_to_evict(
    classes: np.ndarray, worth: np.ndarray, newest: int, seen: int, dice: random.Random
) -> int:
    """The row that goes, perhaps `newest` itself.

    classes (n,) int and worth (n,) of UNLABELLED, TAUGHT, TRUE of all rows, the newest among them;
    seen: how many segments of the newest's class there ever were, the newest included.
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
