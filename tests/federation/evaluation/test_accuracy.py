from dataclasses import replace

import numpy as np
import pytest

from federation.evaluation.accuracy import (
    HeldOut,
    Score,
    compare,
    reported,
    spells,
)
from federation.evaluation.paired import Paired
from streams.contract.task import Task


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
def test_impossible_figures_of_a_device_count_as_none(
    tiny: Task, metrics: dict[str, float]
) -> None:
    assert reported(tiny, metrics) is None


def test_a_device_reports_the_tasks_metric(tiny: Task) -> None:
    task = replace(tiny, metric="macro_f1")
    counts = {"correct": 5.0, "evaluated": 10.0}
    assert reported(task, {**counts, "metric": 0.4}) == Score(0.4, 10.0)
    assert reported(task, counts) is None
    assert reported(task, {**counts, "metric": float("nan")}) is None


def test_the_audit_has_all_classes_and_no_neighbours_of_what_decides(tiny: Task) -> None:
    classes = np.repeat([0, 1, 0, 1, 0, 1, 2], 3)
    data = HeldOut(
        np.arange(21, dtype=np.float32)[:, None, None] * np.ones((1, 2, 20), np.float32),
        classes[:, None].astype(np.float32),
    )
    decides, audit = data.audited(tiny, least=0)
    assert audit.segments[:, 0, 0].tolist() == [6, 7, 8, 9, 10, 11]
    assert audit.labels[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert sorted({*decides.labels[:, 0]}) == [0, 1, 2]
    assert len(decides.labels) + len(audit.labels) == 21


@pytest.mark.parametrize(("rows", "apart"), [(79, 0), (80, 32), (96, 48)])
def test_the_gate_keeps_all_rows_where_they_are_few(tiny: Task, rows: int, apart: int) -> None:
    task = replace(tiny, classes=(), targets=("speed",))
    data = HeldOut(np.zeros((rows, 2, 20), np.float32), np.zeros((rows, 1), np.float32))
    decides, audit = data.audited(task)
    assert (len(decides.labels), len(audit.labels)) == (rows - apart, apart)


def test_two_models_are_compared_row_by_row_and_by_cohort(tiny: Task) -> None:
    labels, north = np.array([[0], [0], [1], [1], [1]], np.float32), np.arange(5) < 3
    outputs = np.eye(3)[[0, 0, 0, 2, 1]], np.eye(3)[[0, 1, 1, 2, 1]]
    found = compare(tiny, outputs, labels, np.arange(5), {"north": north})
    assert found.rows == Paired(5, 3, 1, 1, down=1, squares=2)
    assert found.cohorts == {
        "group north": Paired(3, 2, 1, 1, down=1, squares=2),
        "class slow": Paired(2, 2, 0, 1, base_false=1, down=1, squares=1),
        "class middle": Paired(3, 1, 1, 0, false=1, squares=1),
        "class fast": Paired(base_false=1, false=1),
    }
    together = compare(tiny, outputs, labels, np.array([0, 0, 0, 1, 1]))
    assert together.rows == Paired(5, 3, 1, 1)


def test_with_several_classes_in_an_answer_rows_are_counted_and_no_classes(tiny: Task) -> None:
    labels, north = np.array([[0], [0], [1], [1], [1]], np.float32), np.arange(5) < 3
    outputs = np.eye(3)[[0, 0, 2, 2, 1]], np.eye(3)[[0, 2, 1, 2, 1]] + [0.0, 0.1, 0.2]
    found = compare(replace(tiny, metric="top_2"), outputs, labels, np.arange(5), {"north": north})
    assert found.rows == Paired(5, 3, 2, 1, down=1, squares=3)
    assert found.cohorts == {"group north": Paired(3, 2, 1, 1, down=1, squares=2)}


def test_a_spell_is_a_run_of_one_class(tiny: Task) -> None:
    labels = np.array([[0], [0], [1], [1], [0]], np.float32)
    assert spells(tiny, labels).tolist() == [0, 0, 1, 1, 2]
    assert spells(replace(tiny, classes=(), targets=("speed",)), labels).tolist() == [0] * 5
    assert len(spells(tiny, labels[:0])) == 0
