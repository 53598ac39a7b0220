"""The hourly task on the real counts: in order, dated, and what comes true an hour later."""

import math
from itertools import islice

import numpy as np
import pytest

from streams.contract.task import check_model
from streams.segments.findings import findings
from streams.segments.survey import survey
from streams.tasks.pedestrians import HOUR_US, WEEK, counts, outcomes, readings, series, task
from tidewheel import Answered, Outcome

NEW_YEAR_US = 1_704_067_200_000_000  # 2024


def test_a_new_years_night_is_where_it_belongs() -> None:
    sensors = counts().column_names[1:]
    times, passed = series(sensors.index("210 Queen Street"))
    assert times[0] == NEW_YEAR_US
    assert passed[0] == 1886  # the row of 2023-12-31, hour 0
    assert len(times) == 8783
    assert (np.diff(times) <= 0).sum() == 1  # the hour that comes twice when clocks go back
    assert (np.diff(times) > HOUR_US).sum() == 2
    assert len(sensors) == 21


def test_an_hours_label_is_the_next_hours_count_and_a_week_ago_is_that_hours() -> None:
    found = list(islice(readings("sensor-10"), 2 * WEEK))
    by_time = {reading.time_us: reading for reading in found}
    checked = 0
    for reading in found[WEEK:-1]:
        coming = by_time.get(reading.time_us + HOUR_US)
        before = by_time.get(reading.time_us + HOUR_US - WEEK * HOUR_US)
        if coming is None or before is None:
            continue
        assert reading.label == coming.values[0]
        assert reading.values[1] == before.values[0]
        checked += 1
    assert checked > 160
    assert all(len(reading.values) == len(task.channels) for reading in found)
    assert math.expm1(found[0].values[0]) == pytest.approx(round(math.expm1(found[0].values[0])))


def test_an_outcome_comes_with_the_next_hour_and_not_over_a_gap() -> None:
    def answered(hour: int, count: float) -> Answered:
        segment = np.full((6, 6), count, np.float32)
        last = hour * HOUR_US
        return Answered(last - 5 * HOUR_US, last, segment, np.zeros(1, np.float32))

    given = [answered(10, 1.0), answered(11, 2.0), answered(13, 3.0), answered(14, 4.0)]
    assert list(outcomes("sensor-00", iter(given))) == [
        Outcome(given[0].last_us, given[0].last_us, 2.0),  # those before it overlap it
        Outcome(given[2].last_us, given[2].last_us, 4.0),
    ]


def test_the_task_has_nothing_wrong_with_it() -> None:
    check_model(task)
    surveys = [survey(task, device) for device in task.devices()]
    assert [f for f in findings(task, surveys) if f.level == "error"] == []
    assert {one.dated for one in surveys} == {True}
    assert min(one.labelled for one in surveys) > WEEK - 10  # of the pilots, which have a week
