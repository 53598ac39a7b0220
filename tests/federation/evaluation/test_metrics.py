"""The metrics are scikit-learn's."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from federation.evaluation.metrics import CLASSES, TARGETS, measured
from tests.fakes.tiny_task import task

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
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, answers, average="macro"))
    there = [k for k in range(3) if 0 < (truth == k).mean() < 1]
    for name, of in (("auc", sk.roc_auc_score), ("average_precision", sk.average_precision_score)):
        if not there:
            assert name not in found
            continue
        wanted = np.mean([of(truth == k, outputs[:, k]) for k in there])
        assert found[name] == pytest.approx(wanted), name


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
    assert set(measured(task, np.eye(3)[[0, 0, 0, 1]], same)) == {"accuracy", "macro_f1"}
    assert measured(task, np.zeros((0, 3)), np.zeros((0, 1))) == {}
    assert set(measured(REGRESSION, np.zeros((3, 2)), np.ones((3, 2)))) == {"mae", "rmse"}
    assert not CLASSES.keys() & TARGETS.keys()
