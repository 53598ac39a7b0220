"""How much counts of what a device claims to have: samples in a round's mean, rows at the gate.

A device counts with CLAIM_FACTOR times the median claim at most. Where all have the same, devices
that are less than a third of all then have less than half of the weight, whatever they claim. The
median is over the claims, so it stays an honest one while liars are fewer than half; beside unequal
honest claims they can raise it to one of the larger ones. One or two devices are not limited: no
claim is above twice their mean.
"""

from collections.abc import Sequence

import numpy as np

CLAIM_FACTOR = 2.0


def most(claims: Sequence[float] | np.ndarray) -> float:
    """Return the most with which one of the devices may count."""
    return CLAIM_FACTOR * float(np.median(claims))
