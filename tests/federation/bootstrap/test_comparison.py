"""What is said of the first model and the teacher where only some recordings have labels."""

from dataclasses import replace

import numpy as np
import pytest

from federation.bootstrap.comparison import Metrics, compare, warning_of
from federation.bootstrap.dataset import Segments, segments_of_device, stack
from streams.contract.task import Task
from streams.learning.learning import build_teacher


@pytest.mark.parametrize(
    ("fleet", "held_out", "where"),
    [
        ((0.7, 0.9), (0.9, 0.7), None),
        ((0.9, 0.7), (0.7, 0.9), "on the fleet"),
        ((0.0, 0.0), (0.7, 0.9), "on the fleet"),  # labels are there, and nothing is right
        ((None, None), (0.7, 0.9), None),
        ((None, None), (0.9, 0.9), "on the held-out devices"),
        ((None, None), (None, None), None),
    ],
)
def test_the_teacher_is_compared_where_there_are_labels(
    tiny: Task,
    fleet: tuple[float | None, float | None],
    held_out: tuple[float | None, float | None],
    where: str | None,
) -> None:
    metrics: Metrics = {"model_fleet": fleet[0], "teacher_fleet": fleet[1]}
    metrics |= {"model_held_out": held_out[0], "teacher_held_out": held_out[1]}
    found = warning_of(tiny, metrics)
    assert (
        found == ""
        if where is None
        else f"not better than the first device model {where}" in (found)
    )


def test_what_cannot_be_measured_is_none_and_not_zero(tiny: Task) -> None:
    known = segments_of_device(tiny, "held-0")
    unknown = replace(known, labels=np.full_like(known.labels, np.nan))
    people: dict[str, list[Segments]] = {"fleet": [unknown], "held_out": [known]}
    labels = stack(tiny, [known]).labels[:, 0].astype(int)
    wrong = np.eye(tiny.outputs, dtype=np.float32)[(labels + 1) % 3]
    found = compare(tiny, lambda _segments: wrong, build_teacher(tiny).eval(), people)
    assert (found["model_fleet"], found["teacher_fleet"]) == (None, None)
    assert found["model_held_out"] == 0.0
    assert found["teacher_held_out"] is not None
    assert compare(tiny, lambda segments: segments, build_teacher(tiny), {"fleet": []}) == {
        "model_fleet": None, "teacher_fleet": None
    }  # fmt: skip


def test_a_teacher_that_scores_nothing_need_not_be_better(tiny: Task) -> None:
    worse: Metrics = {"model_fleet": 0.9, "teacher_fleet": 0.1}
    worse |= {"model_held_out": 0.9, "teacher_held_out": 0.1}
    assert warning_of(tiny, worse)
    assert warning_of(replace(tiny, upload="prediction"), worse) == ""
