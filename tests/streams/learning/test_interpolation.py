"""Points between two sets of weights."""

import numpy as np
import pytest

from streams.learning.updates import interpolated

BASE = {"w": np.array([1.0, -2.0], np.float32), "h": np.array([1.0], np.float16), "n": np.array(3)}
NEW = {"w": np.array([3.0, 2.0], np.float32), "h": np.array([2.0], np.float16), "n": np.array(9)}


@pytest.mark.parametrize(("share", "found"), [(1.0, [3, 2]), (0.5, [2, 0]), (0.25, [1.5, -1])])
def test_floats_are_between_and_counters_are_the_learned_ones(
    share: float, found: list[float]
) -> None:
    between = interpolated(BASE, NEW, share)
    np.testing.assert_array_equal(between["w"], found)
    assert between["w"].dtype == np.float32
    assert between["h"].dtype == np.float16
    assert between["n"] == 9
    assert list(between) == list(NEW)
