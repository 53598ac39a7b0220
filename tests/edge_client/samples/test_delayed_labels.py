"""Labels that become known later: what the task's own generator is given and what it tells."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_client.samples.accuracy import AccuracyTracker, AnswerRecorder
from edge_client.samples.labels import ANSWERS, OUTCOMES_OVERFLOW, UNFIT, DelayedLabels, LabelQueue
from edge_client.samples.samples import Samples
from edge_client.spool.writer import Event
from streams.contract.task import Answered, Outcome, Task
from tests.edge_client.samples.test_samples import training_table
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.workers import until

SECOND = 1_000_000


def event(i: int) -> Event:
    segment = np.full(tiny.segment_shape, i, np.float32)
    outputs = np.array([1, 0, 0], np.float32)
    return Event(i * SECOND, "1-aaaaaaaa", outputs, None, segment, first_us=i * SECOND - 1000)


class Device:
    """A device's memory with the task's outcomes, whose generator runs."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.skipped: list[str] = []
        self.samples = Samples(task, folder / "s.rows")
        self.told = LabelQueue(
            folder / "labels", self.samples, lambda why, _: self.skipped.append(why)
        )
        self.outcomes = DelayedLabels(
            task, "d0", self.told, lambda why, _: self.skipped.append(why)
        )
        board = AccuracyTracker(folder / "board.json")
        self._recorder = AnswerRecorder(task, self.samples, board, self.outcomes)
        self.outcomes.start()

    def note(self, events: Sequence[Event]) -> None:
        self._recorder.note(events, self.samples.added)


def test_the_truth_of_a_segment_is_what_came_three_segments_later(tmp_path: Path) -> None:
    def later(device: str, answered: Iterator[Answered]) -> Iterable[Outcome]:
        """The label is the first value of the third segment behind it, modulo 3."""
        assert device == "d0"
        waiting: list[Answered] = []
        for one in answered:
            waiting.append(one)
            if len(waiting) > 3:
                first = waiting.pop(0)
                yield Outcome(first.last_us, first.last_us, int(one.segment[0, 0]) % 3)

    device = Device(replace(tiny, outcomes=later), tmp_path)
    device.note([event(i) for i in range(20)])
    until(lambda: device.samples.sources() == {"outcome": 17}, "17 outcomes are known")
    device.outcomes.stop()
    assert not device.outcomes.is_alive()
    table = training_table(device.samples, tmp_path)
    segments, labels = table["segment"].reshape(len(table), -1), table["label"][:, 0]
    assert len(labels) > 8
    assert labels.tolist() == [(int(x) + 3) % 3 for x in segments[:, 0]]


def test_answers_of_one_time_have_each_its_own_truth(tmp_path: Path) -> None:
    def own(_device: str, answered: Iterator[Answered]) -> Iterable[Outcome]:
        for one in answered:
            yield Outcome(one.last_us, one.last_us, int(one.segment[0, 0]) % 3, one.seq)

    device = Device(replace(tiny, outcomes=own), tmp_path)
    device.note([event(i)._replace(time_us=SECOND, first_us=SECOND) for i in range(9)])
    until(lambda: device.samples.sources() == {"outcome": 9}, "all outcomes are known")
    device.outcomes.stop()
    assert device.samples.teach(np.array([4]), np.array([[0, 0, 1]], np.float32)) == 1
    segments, labels, *_ = device.samples.choosing(100, 0)
    assert len(labels) == 9
    assert labels[:, 0].tolist() == [float(x) % 3 for x in segments[:, 0, 0]]
    assert device.samples.teacher_record() == {2: (1, 0)}  # of event 4 alone, of class 1


def test_the_truth_of_a_repeated_recording_is_found_by_its_own_time(tmp_path: Path) -> None:
    def looked_up(_device: str, answered: Iterator[Answered]) -> Iterable[Outcome]:
        truth = {SECOND * i: i % 3 for i in range(5)}
        for one in answered:
            yield Outcome(one.last_us, one.last_us, truth[one.recorded_us])

    device = Device(replace(tiny, outcomes=looked_up), tmp_path)
    device.note([event(i)._replace(recorded_us=SECOND * (i % 5)) for i in range(10)])
    until(lambda: device.samples.sources() == {"outcome": 10}, "all outcomes are known")
    device.outcomes.stop()
    assert device.outcomes.error is None
    segments, labels, *_ = device.samples.choosing(100, 0)
    assert labels[:, 0].tolist() == [float(x % 5 % 3) for x in segments[:, 0, 0]]


def test_a_generator_that_raises_begins_anew_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_client.samples.labels.RESTART_S", (0.01, 0.02))
    lives: list[int] = []

    def shaky(_device: str, answered: Iterator[Answered]) -> Iterable[Outcome]:
        lives.append(len(lives))
        for one in answered:
            if len(lives) < 3:
                raise ValueError("the register is closed")
            yield Outcome(one.first_us, one.last_us, 2)

    device = Device(replace(tiny, outcomes=shaky), tmp_path)
    device.note([event(0)])
    until(lambda: device.outcomes.error is not None, "the error is told")
    assert "ValueError: the register is closed" in str(device.outcomes.error)
    device.note([event(1), event(2)])
    until(lambda: device.samples.sources() == {"outcome": 1}, "the third life tells an outcome")
    assert device.outcomes.error is None
    device.outcomes.stop()


def test_an_outcome_that_is_no_label_is_counted_and_harms_nothing(tmp_path: Path) -> None:
    def wrong(_device: str, answered: Iterator[Answered]) -> Iterable[Outcome]:
        given = [(0, 7), (0, "x"), (0, None), (0, float("nan")), (-1, 1), (2**55, 1), (0, 1)]
        for (later_us, label), one in zip(given, answered, strict=False):
            yield Outcome(one.last_us, one.last_us + later_us, label)  # type: ignore[arg-type]

    device = Device(replace(tiny, outcomes=wrong), tmp_path)
    device.note([event(i) for i in range(7)])
    until(lambda: device.samples.sources() == {"outcome": 1}, "the sound one is noted")
    assert device.skipped == [UNFIT] * 6
    until(lambda: not device.outcomes.is_alive(), "the generator has ended")
    device.note([event(i) for i in range(2 * ANSWERS)])  # nobody waits for them, none is missed
    assert device.skipped == [UNFIT] * 6


def test_a_slow_generator_holds_nobody_up(tmp_path: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow(_device: str, answered: Iterator[Answered]) -> Iterable[Outcome]:
        for one in answered:
            asked.set()
            go_on.wait(60)
            yield Outcome(one.last_us, one.last_us, 0)

    device = Device(replace(tiny, outcomes=slow), tmp_path)
    device.note([event(0)])
    assert asked.wait(10)
    device.note([event(i) for i in range(1, ANSWERS + 51)])
    assert device.skipped == [OUTCOMES_OVERFLOW] * 50
    assert device.samples.counts()[0] == ANSWERS + 51
    go_on.set()
    until(lambda: device.samples.sources() == {"outcome": ANSWERS + 1}, "the rest is told")
    device.outcomes.stop()


def test_a_generator_that_tells_much_of_one_answer_leaves_nothing_in_memory(tmp_path: Path) -> None:
    ends = threading.Event()

    def later(_device: str, answered: Iterator[Answered]) -> Iterable[Outcome]:
        for one in answered:
            while not ends.wait(0.01):
                yield Outcome(one.last_us, one.last_us, 1)

    device = Device(replace(tiny, outcomes=later), tmp_path)
    device.note([event(1)])
    until(lambda: device.told.queue.account().produced > 10, "labels are on the disk")
    ends.set()
    device.outcomes.stop()
