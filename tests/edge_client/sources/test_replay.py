"""A replay resumes where it was, and its passes meet the same split."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from edge_client.samples.table import split_of
from edge_client.sources.live import Live
from edge_client.sources.replay import MOST_LATE, Cut, Replay
from tests.rig.made_up.tiny_task import task
from tidewheel import Reading, Segment


class Clock(threading.Event):
    """A stop that notes how long it was waited on, and lets that time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.waits = 0.0, list[float]()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self.now += timeout
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    return made


@pytest.fixture
def replay(tmp_path: Path, clock: Clock) -> Callable[..., Replay]:
    """Makes one whose stop is `clock`."""
    return partial(
        Replay, folder=tmp_path, passes=1, resume_after_us=None, stop=clock,
        skip=lambda _reason, _time: None,
    )  # fmt: skip


def test_the_second_pass_meets_the_same_segments_and_split_at_later_times(
    replay: Callable[..., Replay],
) -> None:
    cuts = list(replay(task, lambda: task.readings("d1"), speed=0, passes=2))
    half = len(cuts) // 2
    first, second = cuts[:half], cuts[half:]
    assert [c.recorded_us for c in first] == [c.recorded_us for c in second]
    assert all(a.first_us < b.first_us for a, b in pairwise(cuts))
    splits = [[split_of(task, c.first_us, c.last_us) for c in half] for half in (first, second)]
    assert splits[0] == splits[1]
    assert set(splits[0]) == {0, 1, 2}


def numbered(began: int, count: int = 45, step_us: int = 50_000) -> Callable[[], list[Reading]]:
    return lambda: [Reading(began + i * step_us, (0.0, 0.0)) for i in range(count)]


DATE = 1_790_000_000_000_000
SINGLE = replace(task, rate_hz=None, segment=Segment(samples=1, hop=1))  # events at any times


def test_a_sensors_times_are_kept_and_it_is_not_repeated() -> None:
    source = Live(task, numbered(DATE), threading.Event(), lambda _reason, _time: None)
    assert [(c.first_us, c.last_us) for c in source] == [
        (DATE, DATE + 950_000),
        (DATE + 500_000, DATE + 1_450_000),
        (DATE + 1_000_000, DATE + 1_950_000),
    ]


def test_a_dated_recording_keeps_its_dates_and_is_repeated_after_them(
    replay: Callable[..., Replay],
) -> None:
    def cuts(resume: int | None) -> list[Cut]:
        return list(replay(task, numbered(DATE), speed=0, passes=2, resume_after_us=resume))

    found = cuts(None)
    assert [c.first_us for c in found[:3]] == [DATE, DATE + 500_000, DATE + 1_000_000]
    assert all(a.first_us < b.first_us for a, b in pairwise(found))
    assert [c.recorded_us for c in found] == 2 * [c.first_us for c in found[:3]]
    assert [c.first_us for c in cuts(found[3].last_us)] == [c.first_us for c in found[4:]]


@pytest.mark.parametrize("step_s", [0.05, 3600.0, 86_400.0])
@pytest.mark.parametrize("speed", [1.0, 30.0, 7200.0])
def test_readings_are_paced_however_seldom_they_come(
    replay: Callable[..., Replay], clock: Clock, step_s: float, speed: float
) -> None:
    slow = replace(task, rate_hz=1 / step_s)
    assert len(list(replay(slow, numbered(0, step_us=round(step_s * 1e6)), speed=speed))) == 3
    assert clock.waits == pytest.approx([10 * step_s / speed] * 2)


def test_a_pause_in_the_data_is_not_waited_for(replay: Callable[..., Replay], clock: Clock) -> None:
    readings = [*numbered(0, 20)(), *numbered(10**10, 20)()]
    assert len(list(replay(task, lambda: readings, speed=1))) == 2
    assert sum(clock.waits) == 0


def test_late_events_come_at_once_and_those_after_them_keep_their_pace(
    replay: Callable[..., Replay], clock: Clock
) -> None:
    """300 events a minute apart, six of which are two hours late, at 1800 times real time, which is
    set anew just before a late one."""
    late = {100, 101, 150, 200, 201, 250}
    times = [DATE + (60 * i - 7200 * (i in late)) * 1_000_000 for i in range(300)]
    readings = [Reading(time_us, (0.0, 0.0)) for time_us in times]
    source = replay(SINGLE, lambda: readings, speed=1800)
    for number, cut in enumerate(source):
        assert cut.last_us == times[number]
        steps = number if number < 250 else number - 2  # the first one at a speed comes at once
        if number not in late:
            assert clock.now == pytest.approx(steps * 60 / 1800)
        if number == 249:
            source.pace(1800)


def test_a_recording_that_goes_back_by_a_gap_keeps_its_pace_from_there(
    replay: Callable[..., Replay], clock: Clock
) -> None:
    readings = [*numbered(DATE)(), *numbered(DATE - 10**10)()]
    assert len(list(replay(task, lambda: readings, speed=1))) == 6
    assert clock.waits == pytest.approx([0.5] * 4)


def test_a_recording_that_goes_back_for_good_is_paced_again(
    replay: Callable[..., Replay], clock: Clock
) -> None:
    """As one that is sorted by user, of events at any times."""
    count = MOST_LATE + 100
    readings = [Reading(DATE + 10**6 * i, (0.0, 0.0)) for i in (*range(count), *range(count))]
    assert len(list(replay(SINGLE, lambda: readings, speed=1))) == 2 * count
    assert sum(clock.waits) == pytest.approx(count - 1 + count - 1 - MOST_LATE)


def test_a_replay_goes_on_at_another_speed_from_the_next_segment_on(tmp_path: Path) -> None:
    """At the first speed the second one would be due after minutes."""
    replayed = Replay(
        task, lambda: task.readings("d0"), tmp_path, speed=0.001, passes=1, resume_after_us=None,
        stop=threading.Event(), skip=lambda *_: None,
    )  # fmt: skip
    cuts = iter(replayed)
    next(cuts)
    replayed.pace(0)
    assert len(list(cuts)) > 10
