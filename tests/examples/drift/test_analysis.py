"""What the topics tell of people whose phones are worn otherwise from some time on."""

from dataclasses import replace

import pytest

from examples.drift.analysis import Recovery
from streams.kafka.reader import Received
from tests.compose.messages import TASK, release, state, step, window

OLD, NEW = "1-aaaaaaaa", "2-bbbbbbbb"
AFTER_S = 20


def recovery(*messages: Received) -> Recovery:
    """Messages come a second after each other."""
    found = Recovery(TASK, ["d0", "d1"], AFTER_S * 1_000_000)
    for second, message in enumerate(messages, 100):
        found.take(replace(message, time_ms=1000 * second))
    return found


def test_windows_count_before_and_after_by_what_answered() -> None:
    found = recovery(
        window("d0", 0, agreeing=8),
        window("d0", 25, agreeing=4),
        window("d0", 30, model=NEW, agreeing=2),
        window("d0", 35, model=f"{NEW}.a1", agreeing=6, labelled=4, correct=3),
    )
    assert found.before().agreement == pytest.approx(1.0)
    low, now = found.otherwise(), found.adapted(["d0"], 3)
    assert (low.agreement, low.windows) == (pytest.approx(6 / 16), 2)
    assert (now.agreement, now.accuracy) == (pytest.approx(6 / 8), pytest.approx(3 / 4))
    assert found.adapted(["d1"], 3).windows == 0


def test_each_device_counts_from_its_own_first_window() -> None:
    found = recovery(window("d0", 0), window("d1", 1000), window("d1", 1015), window("d1", 1020))
    assert found.before().windows == 3
    assert found.otherwise().windows == 1


def test_a_report_that_comes_again_counts_once_and_others_do_not_count() -> None:
    found = recovery(window("d0", 0), window("d0", 0), window("d9", 0), window("d0", 20))
    assert found.before().windows == 1
    assert found.began_s == pytest.approx(103.0)


def test_moments_are_told_in_their_order_from_the_first_window_of_a_phone_worn_otherwise() -> None:
    found = recovery(window("d0", 0), window("d0", 20), release(NEW, seq=2), window("d1", 0))
    run = step("requested", time_us=102_500_000, reason="drift")
    found.take(replace(run, time_ms=103_000))
    what = [moment.what.split(":")[0] for moment in found.moments()]
    assert what == [f"served {NEW}", "run requested"]
    *_, requested = found.moments()
    assert requested.seconds == pytest.approx(1.5)
    assert requested.windows == pytest.approx(0.5)


def test_held_out_answers_are_those_of_the_people_asked_about_since_a_moment() -> None:
    def told(device: str, of: int, correct: int) -> Received:
        score = {"held_out": of, "held_out_correct": correct}
        return state(device, accuracy={OLD: score, NEW: {"held_out": 2, "held_out_correct": 1}})

    found = recovery(told("d0", 8, 7), told("d1", 2, 2), told("d9", 50, 0))
    before = found.held_out()
    assert (before.of, before.correct) == (14, 11)
    found.take(told("d0", 20, 10))
    since = found.held_out() - before
    assert (since.of, since.correct) == (12, 3)
    assert since.accuracy == pytest.approx(0.25)
    assert (before - before).accuracy is None


def test_the_first_decision_of_all_is_no_decision_of_a_rollout() -> None:
    assert recovery(release(OLD, seq=1)).decided("served") is None
    found = recovery(release(OLD, seq=1), release(NEW, seq=2)).decided("served")
    assert found is not None
    assert found.model == NEW
    assert found.seq == 2
