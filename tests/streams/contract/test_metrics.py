"""The metrics are scikit-learn's."""

import codecs
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as sk

from streams.contract.errors import TaskError
from streams.contract.task import Metric, Readings, Training
from streams.contract.task.metrics import CLASSES, TARGETS, gain, measured, metric_of, named, value
from tests.rig.made_up.tiny_task import task

REGRESSION = replace(task, classes=(), targets=("speed", "load"))


@given(st.integers(2, 60), st.integers(0, 2**32 - 1), st.booleans())
def test_those_of_classes_are_scikit_learns(n: int, seed: int, ties: bool) -> None:
    dice = np.random.default_rng(seed)
    labels = dice.integers(0, 3, (n, 1)).astype(np.float32)
    outputs = dice.normal(size=(n, 3)).astype(np.float32)
    if ties:
        outputs = outputs.round(0)
    found = measured(task, outputs, labels)
    truth, answers = labels[:, 0].astype(int), outputs.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, answers))
    assert found["balanced_accuracy"] == pytest.approx(
        sk.recall_score(truth, answers, labels=np.unique(truth), average="macro")
    )
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, answers, average="macro"))
    there = [k for k in range(3) if 0 < (truth == k).mean() < 1]
    for name, of in (("auc", sk.roc_auc_score), ("average_precision", sk.average_precision_score)):
        if not there:
            assert name not in found
            continue
        wanted = np.mean(
            [of(truth == k, softmax(outputs.astype(np.float64), axis=1)[:, k]) for k in there]
        )
        assert found[name] == pytest.approx(wanted), name


@given(st.integers(2, 60), st.integers(0, 2**32 - 1), st.sampled_from([2, 5, 11]))
def test_an_answer_is_right_if_the_label_is_among_its_k_largest_outputs(
    n: int, seed: int, k: int
) -> None:
    items = replace(task, classes=tuple(f"item {i}" for i in range(12)), metric=f"top_{k}")
    dice = np.random.default_rng(seed)
    labels, outputs = dice.integers(0, 12, (n, 1)).astype(float), dice.normal(size=(2, n, 12))
    wanted = sk.top_k_accuracy_score(labels[:, 0], outputs[0], k=k, labels=np.arange(12))
    assert measured(items, outputs[0], labels)[f"top_{k}"] == pytest.approx(wanted)
    assert items.correct(outputs[0], labels).mean() == pytest.approx(wanted)
    taught = items.labels_from(outputs[1])
    assert (items.agrees(*outputs) == items.correct(outputs[0], taught)).all()
    assert not items.correct(np.full((1, 12), np.nan), np.array([[11.0]])).any()
    assert named(f"top_{k}") == f"top-{k} accuracy"


@given(st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_those_of_targets_are_scikit_learns(n: int, seed: int) -> None:
    dice = np.random.default_rng(seed)
    labels, outputs = dice.normal(size=(n, 2)), dice.normal(size=(n, 2))
    found = measured(REGRESSION, outputs, labels)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(labels, outputs))
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(labels, outputs))
    assert found["r2"] == pytest.approx(sk.r2_score(labels, outputs))


def test_what_is_not_defined_is_left_out() -> None:
    same = np.zeros((4, 1), np.float32)
    assert set(measured(task, np.eye(3)[[0, 0, 0, 1]], same)) == {
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
    }
    assert measured(task, np.zeros((0, 3)), np.zeros((0, 1))) == {}
    assert set(measured(REGRESSION, np.zeros((3, 2)), np.ones((3, 2)))) == {"mae", "rmse", "within"}
    assert not CLASSES.keys() & TARGETS.keys()


def test_a_task_has_one_metric_and_a_default() -> None:
    assert metric_of(task).name == "accuracy"
    assert (metric_of(REGRESSION).name, metric_of(REGRESSION).greater_is_better) == ("mae", False)
    assert metric_of(replace(REGRESSION, metric="r2")).greater_is_better
    worst = Metric("worst", lambda out, true: float(np.abs(out - true).max()), False)
    own = replace(REGRESSION, metric=worst)
    assert metric_of(own) is worst
    assert measured(own, np.zeros((3, 2)), np.ones((3, 2)))["worst"] == 1.0


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (np.array([0.3, 0.4]), "TypeError: it returns array([0.3, 0.4]), not a number"),
        ("0.3", "TypeError: it returns '0.3', not a number"),
        (None, "TypeError: float() argument"),
    ],
)
def test_an_own_metric_that_returns_no_number_is_named(returned: Any, says: str) -> None:
    own = replace(task, metric=Metric("cost", lambda _out, _true: returned))
    with pytest.raises(TaskError, match=re.escape(f"metric cost fails: {says}")):
        value(own, metric_of(own), np.zeros((3, 3)), np.zeros((3, 1)))


@pytest.mark.parametrize(
    ("bug", "said"),
    [
        (lambda: int("my metric bug"), "ValueError: invalid literal .*'my metric bug'"),
        (lambda: codecs.getincrementaldecoder("utf-8")().decode(b"\xff"), "UnicodeDecodeError: .*"),
        (lambda: list(Readings([0], [[0]]).each()), "AttributeError: .*"),  # type: ignore[arg-type]
    ],
    ids=["own", "frozen", "ours"],
)
def test_an_own_metric_that_raises_is_named_with_the_users_line(
    bug: Callable[[], Any], said: str
) -> None:
    def of(_outputs: np.ndarray, _labels: np.ndarray) -> float:
        bug()
        return 0.0

    own = replace(task, metric=Metric("cost", of))
    said = rf"metric cost fails: {said}, {re.escape(__file__)}:\d+$"
    with pytest.raises(TaskError, match=said):
        measured(own, np.zeros((3, 3)), np.zeros((3, 1)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"metric": "rmse"},
        {"metric": "acuracy"},
        {"metric": "top_1"},
        {"metric": "top_3"},
        {"metric": "top_02"},
        {"metric": "top_2", "classes": (), "targets": ("speed", "load")},
        {"metric": Metric("top_2", lambda *_: 0.0)},
        {"metric": Metric("accuracy", lambda *_: 0.0)},
        {"metric": Metric("mae", lambda *_: 0.0)},
        {"metric": Metric("Two Words", lambda *_: 0.0)},
        {"metric": Metric("own", 3)},  # type: ignore[arg-type]
        {"threshold": 0.3},
        {"threshold": 1.0},
        {"training": Training(class_weights=(1.0, 2.0))},
        {"training": Training(class_weights=(1.0, 2.0, 0.0))},
    ],
)
def test_what_cannot_be_a_metric_a_threshold_or_weights_is_said(wrong: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match=r"metric|threshold|class_weights"):
        replace(task, **wrong)


def test_a_threshold_moves_what_is_answered_and_no_order() -> None:
    plain = replace(task, classes=("fine", "fraud"))
    eager = replace(plain, threshold=0.2)
    outputs = np.log(np.array([[0.9, 0.1], [0.75, 0.25], [0.4, 0.6]]))
    labels = np.array([[0.0], [1.0], [1.0]])
    assert plain.answers(outputs).tolist() == [0, 0, 1]
    assert eager.answers(outputs).tolist() == [0, 1, 1]
    assert eager.correct(outputs, labels).all()
    assert eager.labels_from(outputs)[:, 0].tolist() == [0.0, 1.0, 1.0]
    before, after = measured(plain, outputs, labels), measured(eager, outputs, labels)
    assert (before["accuracy"], after["accuracy"]) == (pytest.approx(2 / 3), 1.0)
    assert before["auc"] == after["auc"] == 1.0


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_gain_is_a_difference_of_scores_or_a_share_of_an_error(base: float, new: float) -> None:
    score, error = Metric("s", lambda *_: 0.0), Metric("e", lambda *_: 0.0, False)
    assert gain(score, base, new) == np.clip(new - base, -1, 1)
    assert -1 <= gain(error, base, new) <= 1
    assert gain(error, base, new) == -gain(error, new, base)
    assert (gain(error, base, new) > 0) == (new < base)
