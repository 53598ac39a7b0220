from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.evaluation import (
    CENTRAL_TOLERANCE,
    DEVICE_CAP,
    Accuracy,
    HeldOut,
    decide,
    paired,
    reported,
    score,
)
from streams.contract.task import Task

NONE = Accuracy()


def of(share: float, n: float = 1000) -> Accuracy:
    return Accuracy(share * n, n)


@pytest.mark.parametrize(
    ("central", "fleet", "promoted", "why"),
    [
        ((of(0.8), of(0.8)), (of(0.7), of(0.71)), True, "on devices"),
        ((of(0.8), of(0.8)), (of(0.7), of(0.705)), False, "gains less"),
        ((of(0.8), of(0.79)), (of(0.7), of(0.8)), True, "held-out"),
        ((of(0.8), of(0.78)), (of(0.7), of(0.8)), False, "loses more"),
        ((NONE, NONE), (of(0.7), of(0.8)), True, "on devices"),
        ((of(0.8), of(0.81)), (NONE, NONE), True, "no device evaluated both"),
        ((of(0.8), of(0.805)), (NONE, NONE), False, "gains less"),
        ((of(0.8), of(0.9)), (of(0.7, 5), of(0.1, 5)), True, "no device evaluated both"),
        ((NONE, NONE), (NONE, NONE), False, "nothing was evaluated"),
    ],
)
def test_the_gate(
    central: tuple[Accuracy, Accuracy], fleet: tuple[Accuracy, Accuracy], promoted: bool, why: str
) -> None:
    verdict = decide(*central, *fleet, margin=0.01)
    assert (verdict.promote, why in verdict.reason) == (promoted, True), verdict.reason


share = st.floats(0, 1)


@given(share, share, share, share, st.floats(0, 0.2))
def test_nothing_is_promoted_that_the_devices_find_worse(
    cb: float, cc: float, fb: float, fc: float, margin: float
) -> None:
    verdict = decide(of(cb), of(cc), of(fb), of(fc), margin)
    if verdict.promote:
        assert fc - fb >= margin - 1e-6
        assert cc - cb >= -CENTRAL_TOLERANCE - 1e-6


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"correct": 1.0},
        {"correct": 0.0, "evaluated": 0.0},
        {"correct": 5.0, "evaluated": 4.0},
        {"correct": -1.0, "evaluated": 4.0},
        {"correct": 1.0, "evaluated": float("inf")},
    ],
)
def test_impossible_figures_of_a_device_count_as_none(metrics: dict[str, float]) -> None:
    assert reported(metrics) is None


def test_no_device_outweighs_the_others() -> None:
    found = reported({"correct": 5e8, "evaluated": 1e9})
    assert found is not None
    assert (found.evaluated, found.share) == (DEVICE_CAP, 0.5)


def test_only_devices_that_evaluated_both_models_are_compared() -> None:
    base, after = {"a": of(0.5), "gone": of(0.1)}, {"a": of(0.6), "new": of(0.9)}
    assert paired(base, after) == (of(0.5), of(0.6))


def test_a_regression_is_correct_within_its_tolerance(tiny: Task) -> None:
    task = replace(tiny, classes=(), targets=("speed",), tolerance=0.5)
    outputs = np.array([[1.0], [2.0], [3.0]], np.float32)
    labels = np.array([[1.4], [2.6], [3.0]], np.float32)
    assert score(task, outputs, labels) == Accuracy(2.0, 3.0)


def test_held_out_segments_survive_the_disk(tiny: Task) -> None:
    assert len(HeldOut.decode(None, tiny).labels) == 0
    data = HeldOut(np.ones((4, 2, 20), np.float32), np.zeros((4, 1), np.float32))
    np.testing.assert_array_equal(HeldOut.decode(data.encode(), tiny).segments, data.segments)
