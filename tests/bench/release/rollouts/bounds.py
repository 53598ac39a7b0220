"""An upper bound of a share whose cases are not independent of each other. Pure.

Rollouts share people and models, so many rollouts count for less than as many independent ones. The
design effect says by how much: the variance of the share with people and models as clusters, to
that of independent cases. The bound is that of Clopper and Pearson (1934) for the effective number
of cases, the number over the design effect (Korn and Graubard 1998, "Confidence intervals for
proportions with small expected number of positive counts").
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import beta

CONFIDENCE = 0.95


def members(groups: Sequence[Sequence[str]]) -> np.ndarray:
    """Return (cases, groups) bool: to which groups each case belongs."""
    names = {name: i for i, name in enumerate(sorted({g for one in groups for g in one}))}
    found = np.zeros((len(groups), len(names)), bool)
    for row, one in enumerate(groups):
        found[row, [names[name] for name in one]] = True
    return found


def design_effect(errs: np.ndarray, *clusterings: np.ndarray) -> float:
    """Return how many cases count as one. errs: (cases,) bool; clusterings: as `members` has them.

    A clustering adds the covariance of cases with a common member, where it is positive. Without an
    error, or without anything else, nothing can be estimated: 1.
    """
    left = errs - errs.mean()  # of each case
    independent = float((left**2).sum())
    if not independent:
        return 1.0
    variance = independent
    for found in clusterings:
        count = found.shape[1]
        among = float(((found.T @ left) ** 2).sum()) * count / max(count - 1, 1)
        variance += max(0.0, among - float((found.sum(axis=1) * left**2).sum()))
    return variance / independent


def upper_bound(errors: int, cases: int, effect: float) -> float:
    """Return the one-sided upper bound of a share, at CONFIDENCE."""
    if errors == cases:
        return 1.0
    found, count = errors / effect, cases / effect
    return float(beta.ppf(CONFIDENCE, found + 1, count - found))
