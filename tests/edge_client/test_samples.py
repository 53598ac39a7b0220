"""What a device may learn from: splits, labels and how far the teacher is trusted."""

from pathlib import Path

import numpy as np
import pytest

from edge_client.samples import HELD_OUT, NEITHER, TRAIN, Samples, split_of, split_period_us
from tests.fakes.tiny_task import task

WINDOW = task.window_us


def one_hot(label: int) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[label]


def add(samples: Samples, i: int, answer: int, truth: int | None, split: int = TRAIN) -> None:
    label = None if truth is None else np.array([truth], np.float32)
    segment = np.full(task.segment_shape, i, np.float32)
    samples.add(i, segment, one_hot(answer), split, label)


def test_the_split_is_the_same_in_every_pass_and_straddlers_belong_to_neither() -> None:
    assert split_of(task, 0, 1) == TRAIN
    assert split_of(task, 3 * WINDOW, 3 * WINDOW + 1) == HELD_OUT
    assert split_of(task, 3 * WINDOW - 1, 3 * WINDOW + 1) == NEITHER
    shift = 7 * split_period_us(task)
    for start in range(0, 8 * WINDOW, WINDOW // 3):
        assert split_of(task, start, start + 9) == split_of(task, start + shift, start + shift + 9)


@pytest.mark.parametrize(
    ("teacher_right", "device_right", "trust"),
    [(20, 10, 1.0), (15, 10, 0.5), (10, 10, 0.0), (5, 10, 0.0)],
)
def test_the_teacher_counts_as_far_as_it_is_better(
    tmp_path: Path, teacher_right: int, device_right: int, trust: float
) -> None:
    samples = Samples(task, tmp_path / "s.arrow")
    for i in range(20):
        add(samples, i, answer=0 if i < device_right else 1, truth=0)
        samples.teach(np.array([i]), one_hot(0 if i < teacher_right else 2)[None])
    assert samples.trust() == pytest.approx(trust)


def test_without_evidence_the_teacher_does_not_count(tmp_path: Path) -> None:
    samples = Samples(task, tmp_path / "s.arrow")
    for i in range(7):
        add(samples, i, answer=1, truth=0)
        samples.teach(np.array([i]), one_hot(0)[None])
    for i in range(7, 50):
        add(samples, i, answer=1, truth=None)
        samples.teach(np.array([i]), one_hot(0)[None])
    assert samples.trust() == 0.0
    assert samples.training_table().num_rows == 7


def test_held_out_rows_are_marked_and_have_true_labels_only(tmp_path: Path) -> None:
    samples = Samples(task, tmp_path / "s.arrow")
    for i in range(20):
        add(samples, i, answer=1, truth=0, split=TRAIN)
    for i in range(20, 30):
        add(samples, i, answer=1, truth=2 if i < 25 else None, split=HELD_OUT)
    samples.teach(np.arange(30), np.repeat(one_hot(0)[None], 30, axis=0))
    table = samples.training_table()
    held = table.column("held_out").to_numpy(zero_copy_only=False)
    assert held.sum() == 5
    assert table.column("true").to_numpy(zero_copy_only=False)[held].all()
    assert (~held).sum() == 20


def test_the_ring_is_bounded_and_comes_back_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "s.arrow"
    samples = Samples(task, path, capacity=16)
    for i in range(40):
        add(samples, i, answer=0, truth=i % 3)
    assert samples.counts() == (16, 16, 0)
    assert samples.teach(np.array([0, 39]), np.stack([one_hot(0), one_hot(1)])) == 1
    samples.save()
    again = Samples(task, path, capacity=16)
    assert again.counts() == (16, 16, 1)
    path.write_bytes(b"garbage")
    assert Samples(task, path, capacity=16).counts() == (0, 0, 0)
