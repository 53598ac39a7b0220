"""How far a device trusts the teacher's labels: by class, by its own labels and by the fleet's."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.samples.samples import Samples
from edge_client.samples.table import HELD_OUT, TRAIN, read_all
from edge_client.samples.trust import EVIDENCE, LEAST, SHRINK, by_class, record
from streams.contract.task import Privacy
from tests.rig.made_up.tiny_task import task

NUMBERS = replace(task, classes=(), targets=("speed",), tolerance=0.5)
EYE = np.eye(3, dtype=np.float32)
KINDS = st.lists(st.tuples(*[st.integers(0, 2)] * 3), max_size=60)


def weights(events: Sequence[tuple[int, int, int]], fleet: Sequence[float] = ()) -> np.ndarray:
    """Of events (teacher's answer, device's answer, truth)."""
    found = np.array(events, np.int64).reshape(-1, 3)
    return by_class(task, EYE[found[:, 0]], EYE[found[:, 1]], found[:, 2:].astype(float), fleet)


def test_a_class_counts_as_far_as_the_teacher_is_better_in_it() -> None:
    events = [(0, 1, 0)] * 20 + [(1, 1, 1)] * 20
    d = np.array([SHRINK * 0.5 / (20 + SHRINK), (20 + SHRINK * 0.5) / (20 + SHRINK)])
    found = weights(events)
    assert found[:2] == pytest.approx((1 - d) / (1 - d))
    assert found[2] == 1.0  # never answered: as over all classes, where it is right
    worse = weights([(0, 0, 0)] * 15 + [(0, 0, 1)] * 5)
    assert worse[0] == 0.0  # the device says the same


def test_a_class_on_which_the_teacher_is_wrong_is_not_used_and_the_others_are() -> None:
    events = [(0, 1, 0)] * 30 + [(1, 2, 1)] * 4 + [(1, 2, 0)] * 8
    found = weights(events)
    assert found[0] > 0.9
    assert found[1] == 0.0


def test_what_the_fleet_knows_of_a_class_counts_where_a_device_has_few_events_of_it() -> None:
    events = [(0, 1, 0)] * 12
    alone = weights(events)
    assert alone[1] > 0.0
    told = weights(events, [0.95, 0.3, 0.95])
    assert told[1] == 0.0
    assert told[0] > 0.9
    assert weights(events, [LEAST - 0.01, 0.9, 0.9])[0] == 0.0
    assert (weights(events, [0.5]) == alone).all()  # of another number of classes


def test_a_teachers_label_is_one_class_however_many_an_answer_names() -> None:
    answers, true = EYE[[0] * 12 + [1] * 12], np.array([[0.0]] * 12 + [[2.0]] * 12)
    assert record(replace(task, metric="top_2"), answers, true) == {0: (12, 12), 1: (12, 0)}


def test_too_few_events_prove_nothing() -> None:
    assert not weights([(0, 1, 0)] * (EVIDENCE - 1), [1.0, 1.0, 1.0]).any()
    assert weights([(0, 1, 0)] * EVIDENCE).any()


def test_numbers_count_as_far_as_the_teacher_is_within_the_tolerance_more_often() -> None:
    true, near, far = np.zeros((20, 1)), np.full((20, 1), 0.1), np.full((20, 1), 2.0)
    half = np.where(np.arange(20)[:, None] < 10, near, far)
    assert by_class(NUMBERS, near, far, true).tolist() == pytest.approx([1.0])
    assert by_class(NUMBERS, half, far, true).tolist() == pytest.approx([0.5])
    assert by_class(NUMBERS, far, near, true).tolist() == [0.0]


@given(KINDS, st.sampled_from([(), (0.9, 0.2, 0.7)]))
def test_a_weight_is_a_share_and_no_teacher_counts_that_is_always_wrong(
    events: list[tuple[int, int, int]], fleet: tuple[float, ...]
) -> None:
    found = weights(events, fleet)
    assert ((found >= 0) & (found <= 1)).all()
    wrong = weights([(t, d, (t + 1) % 3) for t, d, _ in events], fleet)
    for kind in {t for t, *_ in events}:
        if sum(t == kind for t, *_ in events) >= 4 or not fleet:
            assert wrong[kind] == 0.0


@given(KINDS)
def test_a_record_counts_each_event_once(events: list[tuple[int, int, int]]) -> None:
    found = np.array(events, np.int64).reshape(-1, 3)
    told = record(task, EYE[found[:, 0]], found[:, 2:].astype(float))
    assert sum(count for count, _ in told.values()) == len(events)
    assert sum(right for _, right in told.values()) == sum(t == y for t, _, y in events)
    assert all(0 < count >= right for count, right in told.values())


# --- on a device ---------------------------------------------------------------------------------


def device(folder: Path, its: type(task) = task) -> Samples:  # type: ignore[valid-type]
    """Of class 0 the teacher is right and the device is not; half of its answers are class 1, which
    is wrong. Four rows of each of these classes have its label alone."""
    samples = Samples(its, folder / "samples.rows")
    for i in range(40):
        split = HELD_OUT if i >= 32 else TRAIN
        truth = 0 if i < 32 and i % 8 not in (3, 6) else None
        label = None if truth is None else np.array([truth], np.float32)
        samples.add(i, i, np.full(task.segment_shape, i, np.float32), EYE[2], split, label)
    samples.teach(np.arange(40), EYE[np.where(np.arange(40) % 2, 1, 0)])
    return samples


def trusted(samples: Samples, folder: Path) -> list[float]:
    """The weights of the teacher's labels that are trained on."""
    with (folder / "training.rows").open("wb") as file:
        samples.write_training_rows(file)
    rows = read_all(folder / "training.rows")
    return [float(weight) for weight in rows["weight"][~rows["true"]]]


def test_a_device_with_differential_privacy_does_not_tell(tmp_path: Path) -> None:
    private = replace(task, training=replace(task.training, privacy=Privacy(1.0, 1.0, 8.0)))
    assert device(tmp_path, private).teacher_record() == {}


def test_only_labels_of_trusted_classes_are_trained_on(tmp_path: Path) -> None:
    samples = device(tmp_path)
    assert samples.trainable() == 28  # four rows have a teacher's label alone, of class 1
    # Four are of class 0, which is trusted as the device was never right there.
    right = (12 + SHRINK * 12 / 24) / (12 + SHRINK)
    assert trusted(samples, tmp_path) == [pytest.approx(right)] * 4
    samples.hear_of_teacher([0.4, 0.9, 0.9])
    assert trusted(samples, tmp_path) == []


def test_what_only_reports_has_no_say(tmp_path: Path) -> None:
    samples = Samples(task, tmp_path / "samples.rows")
    for i in range(8):
        at = 7 * task.window_us + i  # a window that only reports
        label = np.array([0], np.float32)
        samples.add(i, at, np.full(task.segment_shape, i, np.float32), EYE[1], HELD_OUT, label)
        samples.teach(np.array([i]), EYE[:1])
    assert samples.teacher_record() == {}
    assert trusted(samples, tmp_path) == []
