"""A difference in any metric, and whether it is chance."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.evaluation.paired import ALL_SWAPS, Paired, Valued, compare, pool, pool_classes
from streams.contract.task.metrics import metric_of
from tests.rig.made_up.tiny_task import task

SPEED = replace(task, classes=(), targets=("speed",), metric="rmse")
FRAUD = replace(task, classes=("fine", "fraud"), metric="average_precision")


def errors(seed: int, n: int, better: float) -> Valued:
    """Both versions err alike, the candidate by `better` less."""
    dice = np.random.default_rng(seed)
    labels = dice.normal(size=(n, 1))
    outputs = labels + dice.normal(size=(n, 1)), labels + (1 - better) * dice.normal(size=(n, 1))
    return compare(SPEED, metric_of(SPEED), outputs, labels, np.arange(n) // 4)


def test_equal_versions_are_rarely_told_apart_and_better_ones_are() -> None:
    alike = [errors(seed, 80, 0.0).chance_of_gain for seed in range(60)]
    assert np.mean(np.array(alike) <= 0.05) < 0.15
    assert 0.35 < np.mean(alike) < 0.65
    assert all(errors(seed, 80, 0.5).chance_of_gain < 0.01 for seed in range(5))
    assert all(errors(seed, 80, -1.0).chance_of_loss < 0.01 for seed in range(5))


def test_a_rare_class_is_judged_by_average_precision() -> None:
    dice = np.random.default_rng(1)
    labels = (np.arange(400) % 40 == 0).astype(np.float64)[:, None]
    noise = dice.normal(size=400)
    poor = np.stack([np.full(400, 4.0), noise], axis=1)  # all are answered `fine`
    good = np.stack([np.full(400, 4.0), noise + 2 * labels[:, 0]], axis=1)
    found = compare(FRAUD, metric_of(FRAUD), (poor, good), labels, np.arange(400) // 8)
    assert FRAUD.correct(poor, labels).sum() == 390
    assert found.after > found.before + 0.2
    assert found.chance_of_gain < 0.05 < found.chance_of_loss


@given(st.integers(1, 9), st.floats(0.0, 10.0), st.floats(0.0, 10.0))
def test_alike_devices_give_what_so_few_can_tell(n: int, before: float, after: float) -> None:
    found = pool(metric_of(SPEED), [(5, before, after)] * n)
    assert (found.n, found.units) == (5 * n, n)
    assert found.before == pytest.approx(before)
    if after < before:
        assert found.chance_of_gain == pytest.approx(0.5**n)
        assert ("fewer than 5" in found.counts) == (n < 5)
    if after == before:
        assert (found.gain, found.chance_of_gain, found.chance_of_loss) == (0.0, 1.0, 1.0)


def test_of_many_units_some_ways_are_drawn_always_the_same() -> None:
    devices = [(10, 3.0, 2.0)] * (ALL_SWAPS + 8)
    found = pool(metric_of(SPEED), devices)
    assert found == pool(metric_of(SPEED), devices)
    assert found.chance_of_gain == pytest.approx(0.002)


def test_what_is_not_defined_is_not_compared() -> None:
    labels = np.zeros((10, 1))  # no row of the other class
    both = np.eye(2)[np.zeros(10, int)]
    assert compare(FRAUD, metric_of(FRAUD), (both, both), labels, np.arange(10)) == Valued()


def test_a_gain_is_told_row_by_row_and_a_loss_by_clusters() -> None:
    """As by accuracy: two spells that are gained as a whole are a gain, but lost may be chance."""
    labels = np.zeros((40, 1))
    labels[20:] = 1
    wrong, right = np.eye(3)[np.full(40, 2)], np.eye(3)[labels[:, 0].astype(int)]
    f1 = replace(task, metric="macro_f1")
    spells = np.arange(40) // 20
    better = compare(f1, metric_of(f1), (wrong, right), labels, spells)
    assert (better.units, better.chance_of_gain) == (40, 0.002)
    worse = compare(f1, metric_of(f1), (right, wrong), labels, spells)
    assert worse.chance_of_loss == 0.25


def test_the_classes_of_all_devices_add_up() -> None:
    """Each has one class alone, by which its own macro F1 says little."""
    f1 = metric_of(replace(task, metric="macro_f1"))
    base = [Paired(50, 20, 20, 0, base_false=0, false=0), Paired(), Paired()]
    fast = [Paired(), Paired(), Paired(50, 50, 0, 0, base_false=30, false=10)]
    rows = Paired(100, 70, 20, 0)
    found = pool_classes(f1, [base, fast], rows)
    assert found.before == pytest.approx((40 / 70 + 100 / 130) / 2)
    assert found.after == pytest.approx((80 / 90 + 100 / 110) / 2)
    assert found.chance_of_gain == rows.chance_of_gain < 0.001
    assert found.counts == "20 segments better, 0 worse"
    recall = metric_of(replace(task, metric="balanced_accuracy"))
    assert pool_classes(recall, [base, fast], rows).after == pytest.approx((0.8 + 1.0) / 2)
