"""What `evidently` says of fixed samples; test_drift.py compares our distances with it.

`python -m tests.streams.drift.evidently_figures` prints the figures.
"""

import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np


def samples() -> tuple[np.ndarray, np.ndarray]:
    """Two samples whose common bins are all filled on both sides."""
    noise = np.random.default_rng(7)
    return noise.uniform(0, 1, 4000), noise.beta(1.3, 1.0, 3000)


def class_samples() -> tuple[np.ndarray, np.ndarray]:
    """Two samples of four classes."""
    noise = np.random.default_rng(8)
    reference = noise.choice(4, 2000, p=[0.4, 0.3, 0.2, 0.1])
    return reference, noise.choice(4, 500, p=[0.1, 0.3, 0.2, 0.4])


def edges() -> np.ndarray:
    """The edges that evidently chooses for `samples`."""
    return np.histogram_bin_edges(np.concatenate(samples()), bins="sturges")


def figures() -> dict[str, dict[str, float]]:
    """{"numbers" or "classes": {distance: evidently's figure}}."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # evidently sets an option that pandas no longer has
        import pandas as pd
        from evidently.legacy.calculations.stattests.hellinger_distance import _hellinger_distance
        from evidently.legacy.calculations.stattests.jensenshannon import _jensenshannon
        from evidently.legacy.calculations.stattests.psi import _psi
        from evidently.legacy.calculations.stattests.tvd_stattest import _total_variation_distance
        from evidently.legacy.calculations.stattests.wasserstein_distance_norm import (
            _wasserstein_distance_norm,
        )
        from evidently.legacy.core import ColumnType

        distances: dict[str, Callable[..., Any]] = {
            "psi": _psi, "jensen_shannon": _jensenshannon, "hellinger": _hellinger_distance,
        }  # fmt: skip
        found: dict[str, dict[str, float]] = {}
        for name, kind, pair in (
            ("numbers", ColumnType.Numerical, samples()),
            ("classes", ColumnType.Categorical, class_samples()),
        ):
            found[name] = {
                title: float(distance(*(pd.Series(s) for s in pair), kind, 0.1)[0])
                for title, distance in distances.items()
            }
        one, two = (pd.Series(s) for s in samples())
        normed = _wasserstein_distance_norm(one, two, ColumnType.Numerical, 0.1)[0]
        found["numbers"]["wasserstein"] = float(normed) * float(np.std(one))
        one, two = (pd.Series(s) for s in class_samples())
        found["classes"]["total_variation"] = float(_total_variation_distance(one, two))
    return found


if __name__ == "__main__":
    print(json.dumps(figures(), indent=1))  # noqa: T201
