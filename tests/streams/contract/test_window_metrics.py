import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.task import Metric
from streams.contract.task.metrics import retrain_limit, window_errors, window_metric
from streams.contract.window_metrics import added, is_better, is_worse, named, value_of
from tests.rig.made_up.tiny_task import task
from tests.streams.contract.test_task import made

NUMBERS = made(classes=(), targets=("speed",), tolerance=0.25)
errors = st.lists(st.lists(st.floats(0, 1e3), min_size=1, max_size=9), min_size=1, max_size=9)


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("", "accuracy"), ("balanced_accuracy", "balanced_accuracy"), ("auc", "brier"),
        ("macro_f1", "balanced_accuracy"), ("average_precision", "brier"),
        (Metric("gain", lambda out, true: 0.0), "accuracy"), ("top_2", "accuracy"),
    ],
)  # fmt: skip
def test_windows_tell_the_nearest_sum_of_classes(metric: str | Metric, told: str) -> None:
    assert window_metric(made(metric=metric)) == told
    assert retrain_limit(made(metric=metric)) == (0.05 if told == "brier" else 0.9)


@pytest.mark.parametrize(
    ("metric", "told", "limit"),
    [("", "mae", 0.125), ("rmse", "rmse", 0.125), ("r2", "rmse", 0.125), ("within", "within", 0.9)],
)
def test_windows_tell_the_nearest_sum_of_numbers(metric: str, told: str, limit: float) -> None:
    fields = {"classes": (), "targets": ("speed",), "tolerance": 0.25, "metric": metric}
    assert window_metric(made(**fields)) == told
    assert retrain_limit(made(**fields)) == limit


def test_the_users_limit_counts() -> None:
    assert retrain_limit(made(retrain=0.5)) == 0.5
    assert retrain_limit(made(classes=(), targets=("speed",), retrain=7.0)) == 7.0
    assert retrain_limit(made(classes=(), targets=("speed",), retrain=0.0)) == 0.0
    assert window_metric(task) == "accuracy"


@given(errors)
def test_windows_add_up_to_the_metric_of_all_rows(windows: Sequence[Sequence[float]]) -> None:
    rows = np.concatenate([np.array(each) for each in windows])
    for power, metric in ((1, "mae"), (2, "rmse")):
        sums = [{"": (len(each), sum(e**power for e in each))} for each in windows]
        found = value_of(metric, added(sums))  # type: ignore[arg-type]
        assert found == pytest.approx((rows**power).mean() ** (1 / power), rel=1e-6, abs=1e-9)


def test_balanced_accuracy_is_the_mean_over_the_classes_that_occur() -> None:
    sums = {"fine": (90, 90), "fraud": (10, 1), "other": (0, 0)}
    assert value_of("balanced_accuracy", sums) == pytest.approx(0.55)
    assert value_of("accuracy", sums) == pytest.approx(0.91)
    assert value_of("accuracy", {}) is None


def test_an_error_is_better_when_it_is_smaller() -> None:
    assert is_worse("rmse", 1.2, 1.0, 0.1)
    assert not is_worse("rmse", 1.05, 1.0, 0.1)
    assert is_worse("accuracy", 0.79, 0.9, 0.1)
    assert is_better("mae", 0.9, 1.0, 0.1)
    assert not is_better("mae", 0.95, 1.0, 0.1)
    assert is_better("within", 0.92, 0.9, 0.02)
    assert math.isclose(value_of("rmse", {"": (4, 4.0)}) or 0, 1.0)


def test_a_brier_distance_needs_no_threshold() -> None:
    ranked = made(metric="average_precision", classes=("fine", "fraud"))
    near, far = np.array([[2.0, 0.0], [0.0, 0.1]]), np.array([[-2.0, 0.0], [0.0, 3.0]])
    teacher, labels = np.array([[2.0, 0.1], [0.1, 0.0]]), np.array([[0.0], [1.0]])
    assert (window_errors(ranked, near, teacher) < 0.01).all()  # although the second class differs
    assert (window_errors(ranked, far, teacher) > 0.1).all()
    right = window_errors(ranked, np.array([[9.0, 0.0], [0.0, 9.0]]), labels)
    assert right == pytest.approx(0, abs=1e-6)
    assert window_errors(ranked, near[:, ::-1], labels).max() < 1
    assert not window_errors(made(), np.zeros((2, 3)), np.ones((2, 3))).any()


def test_names_say_of_what() -> None:
    assert named("rmse") == "RMSE from the teacher"
    assert named("accuracy", by_labels=True) == "agreement with true labels"
