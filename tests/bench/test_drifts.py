"""Drawn drifts: what is drawn, what a drift alters, and what counts as an alarm."""

import numpy as np
import pytest

from edge_client.samples.splits import split_of
from examples.drift.har_remounted import REMOUNTED
from streams.contract.task import Reading
from streams.tasks import akl, pedestrians
from streams.tasks.har import task
from tests.bench.gains.drift import draws, streets
from tests.bench.gains.drift.draws import AS_RECORDED, Person
from tests.bench.gains.drift.outcome import NEAR, PATIENCE, Alarms, Other, Outcome, goals
from tests.bench.gains.fleet import Recording, replayed, worse_by_chance

FLEET = task.device_names("fleet")
HOP_US = 64 * 20_000


@pytest.fixture
def recording() -> Recording:
    """Thirty windows of noise; every seventh segment has no label."""
    n = 30 * task.window_us // HOP_US
    first_us = np.arange(n) * HOP_US
    dice = np.random.default_rng(0)
    labels = dice.integers(0, 6, (n, 1)).astype(np.float32)
    labels[::7] = np.nan
    segments = dice.normal(size=(n, *task.segment_shape)).astype(np.float32)
    return Recording(first_us, first_us + 127 * 20_000, segments, labels)


def same_but_for_segments(one: Recording, other: Recording) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
        for name in ("first_us", "last_us", "labels")
    )


def test_a_gain_and_an_offset_are_of_each_channel_and_within_their_range(
    recording: Recording,
) -> None:
    recording = recording[np.arange(20)]
    before = recording.segments.copy()
    found = draws.gain_and_offset(recording, np.random.default_rng(1))
    assert same_but_for_segments(found, recording)
    assert np.array_equal(recording.segments, before)
    for channel in range(6):
        x, y = (each.segments[:, channel].ravel() for each in (recording, found))
        gain, offset = np.polyfit(x, y, 1)
        assert draws.GAIN[0] <= gain <= draws.GAIN[1]
        assert abs(offset) <= draws.OFFSET
        assert y == pytest.approx(gain * x + offset, abs=1e-5)


def test_one_axis_dead_leaves_the_others(recording: Recording) -> None:
    found = draws.one_axis_dead(recording, np.random.default_rng(1))
    assert same_but_for_segments(found, recording)
    dead = [c for c in range(6) if not np.array_equal(
        found.segments[:, c], recording.segments[:, c]
    )]  # fmt: skip
    assert len(dead) == 1
    assert not found.segments[:, dead[0]].any()


def test_a_new_place_turns_both_vectors_by_the_same_rotation(recording: Recording) -> None:
    found = draws.new_place(recording, np.random.default_rng(1))
    assert same_but_for_segments(found, recording)
    turns = []
    for axes in (slice(0, 3), slice(3, 6)):
        before, after = (each.segments[:, axes] for each in (recording, found))
        assert np.linalg.norm(after, axis=1) == pytest.approx(np.linalg.norm(before, axis=1))
        x, y = (each.transpose(1, 0, 2).reshape(3, -1) for each in (before, after))
        turns.append(y @ np.linalg.pinv(x))
    assert turns[0] == pytest.approx(turns[1], abs=1e-4)
    assert np.linalg.det(turns[0]) == pytest.approx(1.0, abs=1e-4)
    degrees = np.degrees(np.arccos((np.trace(turns[0]) - 1) / 2))
    assert draws.TURN[0] - 0.1 <= degrees <= draws.TURN[1] + 0.1


def test_remounted_people_take_their_later_recordings_and_nothing_else() -> None:
    name = REMOUNTED[0]
    person, draw = Person.read(task, name), draws.Draw(1, AS_RECORDED, (name,), 12)
    assert person.moved(draw, 0) is person.later
    assert person.later is not None
    assert person.calm.last_us[-1] + 10_000_000 < person.later.first_us[0]

    def standing(part: Recording) -> float:  # walking or not, acc-y is turned round
        return float(np.median(part.segments[part.labels[:, 0] <= 2, 1]))

    assert standing(person.calm) < 0 < standing(person.later)


def test_draws_are_the_same_each_time_and_within_their_ranges() -> None:
    found = [draws.drawn(number, FLEET) for number in range(1, 200)]
    assert found == [draws.drawn(number, FLEET) for number in range(1, 200)]
    assert {draw.how for draw in found} == {AS_RECORDED, *draws.ALTERED}
    assert {len(draw.who) for draw in found} == {1, 2, 3, 4, 5}
    for draw in found:
        assert len(set(draw.who)) == len(draw.who)
        assert draws.AFTER[0] <= draw.after < draws.AFTER[1]
        assert draw.how != AS_RECORDED or set(draw.who) <= set(REMOUNTED)


def test_a_device_drifts_alike_each_time_and_otherwise_than_another(recording: Recording) -> None:
    draw, person = draws.Draw(3, "a new place", ("a", "b"), 12), Person(recording, None)
    first, again, other = (person.moved(draw, at).segments for at in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_a_stream_drifts_at_its_window_and_keeps_every_segments_split(recording: Recording) -> None:
    altered = draws.one_axis_dead(recording, np.random.default_rng(1))
    stream, last_us = replayed(task, recording, altered, 45), -1
    for number in range(100):
        window = next(stream)
        assert window.of is (recording if number < 45 else altered)
        part = window.of[window.rows]
        first, last = part.first_us + window.shift_us, part.last_us + window.shift_us
        assert last[0] > last_us
        last_us = last[-1]
        pairs = zip(first.tolist(), last.tolist(), strict=True)
        assert [split_of(task, *each) for each in pairs] == part.splits(task).tolist()


def test_false_alarms_are_counted_in_windows_without_drift_alone() -> None:
    alarms = Alarms()
    for alarmed, since in (
        (None, 0),  # nothing is decided yet
        (True, 0), (False, 0),
        (None, 1), (False, 2), (True, 3), (True, 4),
    ):  # fmt: skip
        alarms.note(alarmed, since)
    assert (alarms.quiet, alarms.false, alarms.first) == (2, 1, 3)


def outcome(old: float, new: float, *others: Other, sign: float = 1.0) -> Outcome:
    draw, before = draws.Draw(1, "a new place", ("a",), 12), 0.9 if sign > 0 else 0.3
    return Outcome(draw, Alarms(), 6, before, old, new, new, "half", list(others), 0, 0.5, sign)


def test_half_of_the_cost_won_back_is_recovered() -> None:
    assert outcome(0.5, 0.71).recovered
    assert not outcome(0.5, 0.69).recovered
    assert outcome(0.82, 0.851).recovered  # near what it was
    assert not outcome(0.9 - NEAR + 0.001, 0.5).needed
    assert outcome(0.5, 0.39, sign=-1.0).recovered
    assert not outcome(0.5, 0.41, sign=-1.0).recovered


def test_another_device_is_worse_by_more_than_a_point_and_beyond_chance() -> None:
    luck, harm = Other("b", -0.2, 0.3), Other("c", -0.02, 0.01)
    found = {goal.text: goal.measured for goal in goals("x", [outcome(0.5, 0.8, luck, harm)] * 2)}
    assert found["x: draws of 2 with another device worse beyond chance"] == 2
    found = {goal.text: goal.measured for goal in goals("x", [outcome(0.5, 0.8, luck)])}
    assert found["x: draws of 1 with another device worse beyond chance"] == 0
    assert found["x: draws of 1 with another device worse, by chance or not"] == 1
    assert found["x: windows until the alarm, slowest draw"] == PATIENCE + 1


def test_mcnemars_exact_test_is_two_sided() -> None:
    assert worse_by_chance(0, 5) == pytest.approx(2 / 32)
    assert worse_by_chance(6, 0) == pytest.approx(2 / 64)
    assert worse_by_chance(3, 3) == 1.0


def test_a_closed_street_and_a_moved_sensor_leave_what_was_before() -> None:
    hours = {hour * akl.HOUR_US: float(np.log1p(100 + hour)) for hour in range(48)}
    other = dict.fromkeys(hours, 1.0)
    from_us = 24 * akl.HOUR_US
    shut = streets.closed(hours, from_us, np.random.default_rng(1))
    assert list(shut) == list(hours)
    shares = [np.expm1(shut[at]) / np.expm1(count) for at, count in hours.items() if at >= from_us]
    assert all(shut[at] == count for at, count in hours.items() if at < from_us)
    assert streets.CLOSED[0] - 0.01 < min(shares)
    assert max(shares) < streets.CLOSED[1] + 0.01
    gone = streets.moved(hours, other, from_us)
    assert all(gone[at] == (hours if at < from_us else other)[at] for at in hours)


def test_readings_of_the_same_counts_are_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    times = np.arange(400) * akl.HOUR_US
    counts = np.random.default_rng(0).integers(0, 900, 400).astype(np.float32)
    counts[[20, 200]] = np.nan
    monkeypatch.setattr(akl, "sensors", lambda: ["a"])
    monkeypatch.setattr(akl, "series", lambda _sensor, _year: (times, counts))
    like: list[Reading] = list(pedestrians.readings("sensor-00"))
    hours = {reading.time_us: float(reading.values[0]) for reading in like}
    assert list(streets.readings(hours, like)) == like


def test_draws_of_streets_are_the_same_each_time() -> None:
    names = pedestrians.task.device_names("fleet")
    found = [streets.drawn(number, names) for number in range(1, 50)]
    assert found == [streets.drawn(number, names) for number in range(1, 50)]
    assert {len(draw.who) for draw in found} == {1, 2, 3, 4}
