import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.admission import Update
from federation.strategy import SAMPLES_CAP, aggregate

BASE = {"w": np.zeros((2, 3), np.float32), "n": np.array(5, np.int64)}


def update(seed: int, samples: int) -> Update:
    w = np.random.default_rng(seed).normal(0, 100, (2, 3)).astype(np.float32)
    return Update(f"d{seed}", "tiny", 1, "1", samples, {"w": w, "n": np.array(seed, np.int64)})


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=8))
def test_it_is_the_weighted_mean_in_double_precision(samples: list[int]) -> None:
    updates = [update(seed, n) for seed, n in enumerate(samples)]
    weights = np.minimum(samples, SAMPLES_CAP).astype(np.float64)
    stacked = np.stack([u.weights["w"].astype(np.float64) for u in updates])
    expected = np.average(stacked, axis=0, weights=weights).astype(np.float32)
    found = aggregate(updates, BASE)
    assert found["w"].dtype == np.float32
    np.testing.assert_allclose(found["w"], expected, rtol=1e-6)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=6))
def test_the_mean_lies_between_the_updates(samples: list[int]) -> None:
    updates = [update(seed, n) for seed, n in enumerate(samples)]
    stacked = np.stack([u.weights["w"] for u in updates])
    found = aggregate(updates, BASE)["w"]
    assert (found >= stacked.min(axis=0) - 1e-3).all()
    assert (found <= stacked.max(axis=0) + 1e-3).all()


def test_no_device_weighs_more_than_the_cap() -> None:
    greedy, modest = update(1, 1_000_000), update(2, SAMPLES_CAP)
    mean = (greedy.weights["w"].astype(np.float64) + modest.weights["w"]) / 2
    np.testing.assert_allclose(aggregate([greedy, modest], BASE)["w"], mean, rtol=1e-6)


def test_counters_keep_the_bases_value_and_type() -> None:
    found = aggregate([update(1, 3), update(2, 4)], BASE)["n"]
    assert (found.dtype, int(found)) == (np.int64, 5)


def test_nothing_admitted_is_an_error_not_a_zero_model() -> None:
    with pytest.raises(ValueError, match="no update was admitted"):
        aggregate([], BASE)
