"""What a device knows of its answers' accuracy, by version."""

from pathlib import Path

import numpy as np
import pytest

from edge_client.samples.accuracy import OPEN, PLACES, AccuracyTracker, AnswerRecorder
from edge_client.samples.samples import OUTCOME, Samples
from edge_client.spool.writer import Event
from tests.rig.made_up.tiny_task import task


def test_versions_are_compared_on_the_held_out_segments_that_both_have_answered(
    tmp_path: Path,
) -> None:
    board = AccuracyTracker(tmp_path / "board.json")
    for at, first in enumerate((True, False, False, True)):
        board.count("1-a", at, first, held_out=True)
    for at, after in ((1, True), (2, False), (3, True), (9, True)):
        board.count("2-b", at, after, held_out=True)
    board.count("2-b", 20, True, held_out=False)
    board.save()
    for each in (board, AccuracyTracker(tmp_path / "board.json")):
        first, after = each.scores()["1-a"], each.scores()["2-b"]
        assert (first.paired, first.held_out, first.held_out_correct) == (4, 4, 2)
        assert (after.held_out, after.held_out_correct, after.labelled) == (4, 3, 5)
        assert (after.paired, after.paired_correct, after.paired_base_correct) == (3, 2, 1)


def test_the_errors_of_numbers_are_added_up_and_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    board = AccuracyTracker(path, "rmse")
    for at, error in ((0, 9.0), (1, 16.0), (2, 0.0)):
        board.count("1-a", at, error < 1, held_out=at < 2, error=error)
    board.count("2-b", 1, True, held_out=True, error=4.0)
    board.save()
    for each in (board, AccuracyTracker(path, "rmse")):
        first, after = each.scores()["1-a"], each.scores()["2-b"]
        assert first.of_labelled == (25 / 3) ** 0.5
        assert first.of_held_out == (25 / 2) ** 0.5
        assert after.of_paired == (4.0, 2.0)
        assert (first.metric, first.correct, first.held_out_correct) == ("rmse", 1, 0)


def stream(board: AccuracyTracker, model: str, places: range, wrong_every: int) -> None:
    for at in places:
        board.count(model, at * 1_000_000, at % wrong_every > 0, held_out=True)


def test_file_and_memory_do_not_grow_with_a_labelled_stream(tmp_path: Path) -> None:
    sizes = []
    for length in (4 * PLACES, 16 * PLACES):
        path = tmp_path / f"{length}.json"
        board = AccuracyTracker(path)
        stream(board, "1-a", range(10**9, 10**9 + length), 4)
        board.save()
        sizes.append(path.stat().st_size)
        found = AccuracyTracker(path).scores()["1-a"]
        assert (found.labelled, found.held_out) == (length, PLACES)
        assert found.of_held_out is not None
        assert abs(found.of_held_out - 3 / 4) < 0.05  # a sample of the whole stream, not its end
    assert abs(sizes[1] - sizes[0]) < sizes[0] / 100


def test_versions_that_saw_the_same_long_data_are_compared_on_the_same_places(
    tmp_path: Path,
) -> None:
    board = AccuracyTracker(tmp_path / "board.json")
    stream(board, "1-a", range(4 * PLACES), 2)
    stream(board, "2-b", range(4 * PLACES), 4)
    after = board.scores()["2-b"]
    assert after.paired == PLACES
    before, now = after.of_paired
    assert before is not None
    assert now is not None
    assert abs(before - 1 / 2) < 0.05
    assert abs(now - 3 / 4) < 0.05


class Device:
    """Answers class 1, in seconds, without a label."""

    def __init__(self, folder: Path) -> None:
        self.samples, self.board = Samples(task, folder / "s.rows"), AccuracyTracker(folder / "b")
        self.recorder, self.seq = AnswerRecorder(task, self.samples, self.board, None), 0

    def answer(self, model: str = "1-aaaaaaaa", truth: int | None = None, count: int = 1) -> None:
        segment = np.zeros(task.segment_shape, np.float32)
        label = None if truth is None else np.array([truth], np.float32)
        for _ in range(count):
            at = self.seq * 1_000_000
            outputs = np.array([0, 1, 0], np.float32)
            event = Event(at, model, outputs, None, segment, at, at, at, label)
            self.recorder.note([event], self.seq)
            self.seq += 1

    def told(self, label: int, seq: int | None, first: int = 0, last: int = 10**6) -> None:
        given = np.array([label], np.float32)
        self.samples.label(first * 1_000_000, last * 1_000_000, given, OUTCOME, seq)

    def counted(self, model: str = "1-aaaaaaaa") -> tuple[int, int, int]:
        score = self.board.scores()[model]
        return score.answers, score.labelled, score.correct


def test_labels_that_come_later_count_once_for_the_version_that_answered(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.answer(count=3)
    device.answer("2-bbbbbbbb.a1", count=2)
    device.answer(truth=1)
    assert device.counted() == (4, 1, 1)
    for _ in range(2):
        device.told(1, 0)
        device.told(0, 3)
    device.told(0, 5)  # known before
    assert device.counted() == (4, 2, 2)
    assert device.counted("2-bbbbbbbb") == (2, 1, 0)
    device.told(1, None, 1, 4)
    assert device.counted() == (4, 4, 4)
    assert device.counted("2-bbbbbbbb") == (2, 2, 1)


def test_as_many_answers_wait_for_a_label_as_have_room(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.answer(count=OPEN + 3)
    for seq in (0, 2, 3, OPEN + 2):
        device.told(1, seq)
    assert device.counted() == (OPEN + 3, 2, 2)


@pytest.mark.parametrize("later", [False, True])
def test_versions_are_compared_by_labels_whenever_they_come(tmp_path: Path, later: bool) -> None:
    device = Device(tmp_path)
    for at, model in enumerate(("1-aaaaaaaa", "2-bbbbbbbb")):
        first = device.seq
        device.answer(model, truth=None if later else 1, count=40)
        for seq in range(first, device.seq):
            device.told(1, seq)
        assert device.counted(model) == (40, 40, 40), at
    score = device.board.scores()["2-bbbbbbbb"]
    assert score.held_out == score.held_out_correct > 0
