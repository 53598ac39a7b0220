"""The task on real departures: what is known at one, and its truth once it has landed."""

import math

import numpy as np

from streams.contract.task import check_model
from streams.segments.findings import findings
from streams.segments.survey import survey
from streams.tasks.flights import DAY_US, of_desk, outcomes, readings, task
from tidewheel import Answered

DESK = "EWR-B6"


def test_a_reading_knows_what_left_before_it_and_nothing_of_itself() -> None:
    flights = of_desk(DESK)
    found = list(readings(DESK))
    assert [r.time_us for r in found] == [f[0] for f in flights] == sorted({f[0] for f in flights})
    for reading, (time_us, _, _, late, miles, destination) in zip(found, flights, strict=True):
        before = [f for f in flights if f[0] < time_us and time_us - DAY_US / 4 < f[1] <= time_us]
        before.sort(key=lambda f: (f[1], f[0]))
        known = [math.log1p(max(0, f[1] - f[0]) / 60e6) for f in before[-5:]] or [0.0]
        assert reading.values == (known[-1], sum(known) / len(known), miles / 1000, destination)
        assert reading.label == late


def test_each_pass_of_a_recording_learns_what_is_late_once_it_has_landed() -> None:
    flights = of_desk(DESK)
    shift = 70 * DAY_US
    segment = np.zeros(task.segment_shape, np.float32)
    answers = [
        Answered(f[0] + moved, f[0] + moved, segment, np.zeros(2), recorded_us=f[0])
        for moved in (0, shift)
        for f in flights
    ]
    now_us, found = 0, {}

    def given():
        nonlocal now_us
        for now in answers:
            now_us = now.last_us
            yield now

    for outcome in outcomes(DESK, given()):
        assert outcome.first_us == outcome.last_us
        assert outcome.first_us not in found
        found[outcome.first_us] = outcome.label, now_us
    for planned, _, landed_us, late, *_ in flights:
        for moved in (0, shift):
            told = found.pop(planned + moved, None)
            if told is None:  # nothing departs after its landing
                assert landed_us + moved > answers[-1].last_us
            else:
                assert told[0] == late
                assert told[1] >= landed_us + moved
    assert not found


def test_the_task_has_nothing_wrong_with_it() -> None:
    check_model(task)
    surveys = [survey(task, device) for device in task.devices()]
    assert [f for f in findings(task, surveys) if f.level == "error"] == []
    assert {one.dated for one in surveys} == {True}
