"""What a device may learn from: splits, labels and how far the teacher is trusted."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.samples.accuracy import AccuracyTracker, AnswerRecorder
from edge_client.samples.samples import OUTCOME, Samples
from edge_client.samples.table import (
    HELD_OUT,
    NEITHER,
    TRAIN,
    read_all,
    row_to_evict,
    split_of,
    split_period_us,
)
from edge_client.spool.writer import Event
from tests.rig.made_up.tiny_task import task

WINDOW = task.window_us


def one_hot(label: int) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[label]


def add(samples: Samples, i: int, answer: int, truth: int | None, split: int = TRAIN) -> None:
    label = None if truth is None else np.array([truth], np.float32)
    segment = np.full(task.segment_shape, i, np.float32)
    samples.add(i, i, segment, one_hot(answer), split, label)


def training_table(samples: Samples, folder: Path) -> np.ndarray:
    with (folder / "training.rows").open("wb") as file:
        samples.write_training_rows(file)
    return read_all(folder / "training.rows")


def test_the_split_is_the_same_in_every_pass_and_straddlers_belong_to_neither() -> None:
    assert split_of(task, 0, 1) == TRAIN
    assert split_of(task, 3 * WINDOW, 3 * WINDOW + 1) == HELD_OUT
    assert split_of(task, 3 * WINDOW - 1, 3 * WINDOW + 1) == NEITHER
    shift = 7 * split_period_us(task)
    for start in range(0, 8 * WINDOW, WINDOW // 3):
        assert split_of(task, start, start + 9) == split_of(task, start + shift, start + shift + 9)


def test_held_out_rows_are_marked_and_have_true_labels_only(tmp_path: Path) -> None:
    samples = Samples(task, tmp_path / "s.rows")
    for i in range(20):
        add(samples, i, answer=1, truth=0, split=TRAIN)
    for i in range(20, 30):
        add(samples, i, answer=1, truth=2 if i < 25 else None, split=HELD_OUT)
    samples.teach(np.arange(30), np.repeat(one_hot(0)[None], 30, axis=0))
    table = training_table(samples, tmp_path)
    held = table["held_out"]
    assert held.sum() == 5
    assert table["true"][held].all()
    assert (~held).sum() == 20


def times_of(path: Path) -> list[int]:
    """The times of all that is saved, in their order in the file."""
    return list(read_all(path)["time"].tolist())


def test_what_is_remembered_is_bounded_and_comes_back_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "s.rows"
    samples = Samples(task, path, capacity=16)
    for i in range(40):
        add(samples, i, answer=0, truth=i % 3)
    assert samples.counts() == (16, 16, 0)
    assert samples.teach(np.array([39, 99]), np.stack([one_hot(0), one_hot(1)])) == 1
    samples.scores_read = 7
    samples.save()
    again = Samples(task, path, capacity=16)
    assert again.counts() == (16, 16, 1)
    assert (again.labels_told, again.scores_read) == (40, 7)
    assert again.sources() == {"told": 16}
    assert again.label(39, 39, np.array([2], np.float32)) == 1
    again.save()
    assert times_of(path)[-4:] == [36, 37, 38, 39]  # the latest stay as they come

    fewer = Samples(task, path, capacity=8)
    assert fewer.counts() == (8, 8, 1)
    add(fewer, 40, answer=0, truth=1)
    assert fewer.counts()[0] == 8
    path.write_bytes(b"garbage")
    assert Samples(task, path, capacity=16).counts() == (0, 0, 0)


@pytest.mark.parametrize(("width", "kept"), [(20, 2048), (20_000, 99)])
def test_the_cap_is_in_bytes_and_in_segments(tmp_path: Path, width: int, kept: int) -> None:
    wide = replace(task, segment=replace(task.segment, samples=width))
    samples = Samples(wide, tmp_path / "s.rows")
    segment = np.zeros(wide.segment_shape, np.float32)
    for i in range(2500):
        samples.add(i, i, segment, np.eye(3, dtype=np.float32)[i % 3], TRAIN, None)
    assert samples.counts()[0] == kept
    samples.save()
    assert (tmp_path / "s.rows").stat().st_size < 16e6


def test_a_label_says_who_told_it_and_when_and_asks_to_be_written(tmp_path: Path) -> None:
    samples = Samples(task, tmp_path / "s.rows", wall=lambda: 12.5)
    for i in range(6):
        add(samples, i, answer=0, truth=1 if i == 0 else None)
    assert not samples.urgent
    samples.label(1, 2, np.array([2], np.float32))
    samples.label(3, 3, np.array([0], np.float32), OUTCOME)
    assert samples.urgent
    assert samples.sources() == {"told": 1, "user": 2, "outcome": 1}
    samples.save()
    assert not samples.urgent
    rows = saved(tmp_path / "s.rows")
    assert [row["source"] for row in rows] == [1, 2, 2, 3, 0, 0]
    assert [row["labelled"] for row in rows] == [12_500_000] * 4 + [0, 0]


def saved(path: Path) -> list[dict[str, Any]]:
    found = read_all(path)
    return [{name: row[name].tolist() for name in found.dtype.names or ()} for row in found]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=30),
    st.integers(1, 100), st.integers(0, 2**32),
)  # fmt: skip
def test_who_gives_way_is_of_the_largest_class_and_of_least_worth_there(
    rows: list[tuple[int, int]], seen: int, seed: int
) -> None:
    classes, worth = np.array(rows).T
    newest = len(rows) - 1
    gone = row_to_evict(classes, worth, newest, seen, random.Random(seed))
    counts = np.bincount(classes)
    assert counts[classes[gone]] == counts.max()
    assert worth[gone] == worth[classes == classes[gone]].min()


def test_answers_of_a_copy_are_scored_as_those_of_its_release(tmp_path: Path) -> None:
    samples, board = Samples(task, tmp_path / "s.rows"), AccuracyTracker(tmp_path / "board.json")
    note = AnswerRecorder(task, samples, board, None).note
    truth = np.array([1], np.float32)
    for i, model in enumerate(("1-aaaaaaaa", "1-aaaaaaaa.p1", "1-aaaaaaaa.p2")):
        segment, outputs = np.zeros(task.segment_shape, np.float32), one_hot(1 if i else 0)
        note([Event(i, model, outputs, None, segment, i, i, i, truth)], i)
    (name, score), *rest = board.scores().items()
    assert (name, rest) == ("1-aaaaaaaa", [])
    assert (score.answers, score.labelled, score.correct) == (3, 3, 2)
