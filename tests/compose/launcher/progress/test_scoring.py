"""`up` says since when nothing is scored, waits while the worker scores, and says what is lost."""

from dataclasses import replace

from compose.launcher.progress.scoring import (
    LEAST_S,
    DrainClock,
    ScoringWatch,
    patience_s,
    why_unscored,
)
from streams.fleet.view import FleetView
from tests.compose.messages import TASK, state, window
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.made_up.uplink_broker import Clock


def test_a_worker_that_does_not_score_is_said_with_since_when() -> None:
    clock, view = Clock(), FleetView(TASK)
    watch = ScoringWatch(30.0, clock, lambda: 0.0)
    view.absorb(window("d0", 0))
    view.absorb(state("d0", delivered=10))
    assert watch.look(view) == ""
    clock.now += 258.0
    assert watch.look(view) == ""  # nothing was sent meanwhile
    view.absorb(state("d0", produced=5000, delivered=5000))
    said = watch.look(view)
    assert said.startswith("nothing scored since ")
    assert said.endswith("(4 min)")
    view.absorb(window("d0", 5))
    assert watch.look(view) == ""


def test_patience_is_that_of_two_windows_at_the_speed_of_the_replay() -> None:
    recorded = replace(tiny, source="recorded", window_s=60.0, lateness_s=0.0)
    assert patience_s(recorded, 30.0) == LEAST_S + 4
    assert patience_s(recorded, 0.0) == LEAST_S
    assert patience_s(replace(recorded, source="live"), 30.0) == LEAST_S + 120


def test_the_end_waits_while_the_worker_scores() -> None:
    clock = Clock()
    drain = DrainClock(30.0, clock)
    for unscored in (900, 600, 300):
        clock.now += 29
        assert drain.goes_on(unscored)
    clock.now += 31
    assert not drain.goes_on(300)


def test_what_is_lost_with_an_embedded_broker_is_said() -> None:
    lost = why_unscored(71_669, "embedded", "loading the teacher")
    assert "71,669 events" in lost
    assert "they are lost with it" in lost
    assert lost.endswith("worker: loading the teacher")
    assert "the next `tidewheel up`" in why_unscored(1, "kafka", "")
