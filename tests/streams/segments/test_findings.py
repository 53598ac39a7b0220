"""Data that cannot work, or hardly: each case is named, with what to do about it."""

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.segments.findings import findings, no_labels
from streams.segments.survey import Survey, survey, surveys
from tests.rig.made_up.tiny_task import task as tiny
from tidewheel import Answered, Count, Device, Outcome, Reading, Segment, Session, Task

PILOT, FLEET = Device("p", "pilot"), Device("f", "fleet")
STEP_US = 50_000  # the tiny task's 20 Hz
DATE = 1_760_000_000_000_000


def sound(_device: str) -> Iterator[Reading]:
    for i in range(200):
        yield Reading(i * STEP_US, (0.0, 1.0), i // 100)


def changed(how: Callable[[int, Reading], Reading | None]) -> Callable[[str], Iterator[Reading]]:
    def readings(device: str) -> Iterator[Reading]:
        for i, reading in enumerate(sound(device)):
            found = how(i, reading)
            if found is not None:
                yield found

    return readings


def failing(device: str) -> Iterator[Reading]:
    for i, reading in enumerate(sound(device)):
        if i == 36:
            raise RuntimeError("the sensor is unplugged")
        yield reading


def said(task: Task, *devices: Device) -> list[str]:
    surveys = [survey(task, device) for device in devices or (PILOT, FLEET)]
    found = findings(task, surveys)
    return [f"{f.level}: {f.where}: {f.text}: {f.advice}" for f in found]


def test_sound_data_has_no_errors() -> None:
    found = said(replace(tiny, readings=sound))
    assert [text for text in found if text.startswith("error")] == []


CASES = {
    "too few values": (
        {"readings": changed(lambda _, r: r._replace(values=(1.0,)))},
        "error: p, f: no segment: 200 of 200 readings have another number of values",
    ),
    "all NaN": (
        {"readings": changed(lambda _, r: r._replace(values=(math.nan, 0.0)))},
        "error: p, f: no segment: 200 of 200 readings have values that are NaN",
    ),
    "backwards": (
        {"readings": changed(lambda i, r: r._replace(time_us=10**9 - i))},
        "error: p, f: no segment: 199 of 200 readings have times that go back",
    ),
    "hourly at 20 Hz": (
        {"readings": changed(lambda i, r: r._replace(time_us=i * 3_600_000_000))},
        "readings come every 3600 s: set rate_hz=0.000277778",
    ),
    "a tenth goes back": (
        {
            "readings": changed(
                lambda i, r: r._replace(time_us=r.time_us - 5_000_000 * (i % 50 == 49))
            )
        },
        "warning: p, f: 7 of 200 readings break a segment (backwards 4, gap 3)",
    ),
    "one reading goes back": (
        {"readings": changed(lambda i, r: r._replace(time_us=r.time_us - 5_000_000 * (i == 150)))},
        "readings break a segment (backwards 1, gap 1): times that go back; sort the readings",
    ),
    "one reading goes back, and a reading is a segment": (
        {
            "readings": changed(
                lambda i, r: r._replace(time_us=r.time_us - 5_000_000 * (i == 150))
            ),
            "segment": Segment(samples=1, hop=1),
            "rate_hz": None,
        },
        "1 of 200 readings is out of order: times that go back; sort the",
    ),
    "a label that is no class": (
        {"readings": changed(lambda _, r: r._replace(label=7))},
        "error: p, f: label 7 is not one of the task's labels: labels are 0 to 2",
    ),
    "no label": (
        {"readings": changed(lambda _, r: r._replace(label=None))},
        "error: pilot: no device of role 'pilot' has a labelled segment: no reading has a label",
    ),
    "nothing": (
        {"readings": changed(lambda _i, _r: None)},
        "error: p, f: readings() yields nothing",
    ),
    "a source that raises": (
        {"readings": failing},
        "error: p, f: readings() fails: RuntimeError: the sensor is unplugged (reading 37, ",
    ),
    "live without dates": (
        {"readings": sound, "source": "live"},
        "error: f: live readings that are not dated",
    ),
    "milliseconds": (
        {"readings": changed(lambda i, r: r._replace(time_us=DATE // 1000 + 50 * i))},
        "error: p, f: time_us looks like milliseconds: it is microseconds: multiply",
    ),
    "a time that is no int": (
        {"readings": changed(lambda i, r: r._replace(time_us=0.5 * r.time_us))},
        "error: p, f: readings() fails: time_us is 0.0: it must be an int, microseconds",
    ),
    "each reading twice": (
        {"readings": changed(lambda i, r: r._replace(time_us=i // 2 * STEP_US))},
        "warning: p, f: 100 of 200 readings have the time of the one before: is each sent twice?",
    ),
    "another rate": (
        {"readings": changed(lambda i, r: r._replace(time_us=2 * r.time_us))},
        "warning: p, f: a reading every 0.1 s, rate_hz=20 says otherwise: set rate_hz=10",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_named_with_advice(name: str) -> None:
    fields, expected = CASES[name]
    found = said(replace(tiny, **fields))  # type: ignore[arg-type]
    assert any(expected in text for text in found), found


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ((PILOT,), "error: fleet: no device has the role 'fleet'"),
        ((FLEET,), "error: pilot: no device has the role 'pilot'"),
        ((PILOT, FLEET), "warning: held-out: no device has the role 'held-out'"),
    ],
)
def test_a_role_that_nobody_has_is_named(devices: tuple[Device, ...], expected: str) -> None:
    assert any(expected in text for text in said(replace(tiny, readings=sound), *devices))


def test_readings_of_one_time_are_named_only_where_there_is_a_rate() -> None:
    twice = changed(lambda i, r: r._replace(time_us=i // 2 * STEP_US))
    once = changed(lambda i, r: r._replace(time_us=(i - (i == 150)) * STEP_US))
    for fields in ({"readings": twice, "rate_hz": None}, {"readings": once}):
        assert not [text for text in said(replace(tiny, **fields)) if "the one before" in text]  # type: ignore[arg-type]


def test_errors_come_first() -> None:
    levels = [text.partition(":")[0] for text in said(replace(tiny, readings=failing))]
    assert levels == sorted(levels)
    assert levels[0] == "error"


def test_how_much_of_the_labels_is_used_is_said() -> None:
    assert any(
        "learns from 30% of its true labels" in t for t in said(replace(tiny, readings=sound))
    )


def test_a_fleet_without_a_true_label_is_told_that_it_learns_nothing() -> None:
    def unlabelled(device: str) -> Iterator[Reading]:
        return (r if device == "p" else r._replace(label=None) for r in sound(device))

    task = replace(tiny, readings=unlabelled)
    wanted = "warning: fleet: no true label in the readings of the fleet that were looked at: with"
    assert [t for t in said(task) if t.startswith(wanted)]
    for other in (replace(task, outcomes=lambda *_: iter(())), replace(tiny, readings=sound)):
        assert not [t for t in said(other) if wanted in t]


def test_labels_of_a_fleet_that_make_no_segment_a_labelled_one_are_named() -> None:
    def seldom(i: int, reading: Reading) -> Reading:
        return reading._replace(label=reading.label if i % 3 else None)

    task = replace(tiny, readings=changed(seldom))
    wanted = "warning: fleet: in no segment 75% of the readings have the same true label: with"
    assert [t for t in said(task) if t.startswith(wanted) and "lower Segment.label_share" in t]
    half = replace(task, segment=replace(task.segment, label_share=0.5))
    assert not [t for t in said(half) if t.startswith("warning: fleet")]


def test_events_out_of_order_break_no_segment() -> None:
    def late(i: int, reading: Reading) -> Reading:
        back = 3 * STEP_US if i % 20 == 19 else 0
        values = (math.nan, 0.0) if i % 10 == 5 else reading.values
        return reading._replace(time_us=reading.time_us - back, values=values)

    task = replace(tiny, readings=changed(late), segment=Segment(1, hop=1), rate_hz=None)
    texts = [t.partition(": ")[2] for t in said(task) if t.startswith("warning: p, f")]
    assert texts == [
        "p, f: 20 of 200 readings break a segment (not-finite 20): values that are NaN, infinite "
        "or not of their channel; fill them, or leave them out",
        "p, f: 10 of 200 readings are out of order: times that go back; sort the readings",
    ]


def test_without_labels_the_reason_is_the_first_that_holds() -> None:
    assert no_labels(tiny, [Survey("p", "pilot")]) == (
        "p: readings() yields nothing: yield Reading(...)"
    )


anything = st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=3), st.just((1, 2)))


@given(rows=st.lists(st.tuples(anything, anything, anything), max_size=8), live=st.booleans())
def test_whatever_a_source_yields_is_a_finding_and_no_traceback(
    rows: list[tuple[object, object, object]], live: bool
) -> None:
    task = replace(tiny, readings=lambda _device: iter(rows), source="live" if live else "recorded")  # type: ignore[arg-type]
    assert said(task)


def test_devices_that_have_the_same_are_named_together_and_not_all_of_them() -> None:
    fleet = [Device(f"f{i}", "fleet") for i in range(5)]
    found = said(replace(tiny, readings=changed(lambda _i, _r: None)), PILOT, *fleet)
    assert found[0].startswith("error: p, f0, f1 and 3 more: readings() yields nothing")
    assert not any("pilot: no device of role" in text for text in found)  # the same once more


def test_live_readings_of_long_ago_are_taken_for_a_recording() -> None:
    dated = changed(lambda i, r: r._replace(time_us=DATE + r.time_us))
    task = replace(tiny, readings=dated, source="live")
    surveys = [survey(task, device) for device in (PILOT, FLEET)]
    texts = [f.text for f in findings(task, surveys, DATE + 10 * 86_400_000_000)]
    assert "live readings that begin 10 days ago" in texts
    assert not any("days ago" in f.text for f in findings(task, surveys, DATE))
    assert not any("days ago" in f.text for f in findings(task, surveys))


@pytest.mark.parametrize("count", [0, 3, 30])
def test_a_live_sensor_is_read_for_a_stated_time(count: int) -> None:
    released = threading.Event()

    def sensor(_device: str) -> Iterator[Reading]:
        for i in range(count):
            yield Reading(DATE + i * STEP_US, (0.0, 1.0))
        released.wait()

    task = replace(tiny, readings=sensor, source="live")
    found = survey(task, FLEET, within_s=2.0)
    released.set()
    assert (found.readings, found.read_s) == (count, 2.0)
    assert (found.segments > 0) == (count == 30)
    said = [f"{f.level}: {f.text}" for f in findings(task, [found]) if f.where == "f"]
    assert said == ([] if count == 30 else [f"warning: {count} readings in 2 s make no segment"])


def test_live_sensors_are_read_at_the_same_time() -> None:
    together = threading.Barrier(3)

    def sensor(device: str) -> Iterator[Reading]:
        together.wait(9.0)  # fails if one of the others is read later
        yield from sound(device)

    fleet = [Device(name, "fleet") for name in "abc"]
    found = surveys(replace(tiny, readings=sensor, source="live"), fleet)
    assert [(one.device, one.readings, one.error) for one in found] == [
        (name, 200, None) for name in "abc"
    ]


def test_of_few_live_readings_it_is_said_that_they_are_not_dated() -> None:
    released = threading.Event()

    def sensor(_device: str) -> Iterator[Reading]:
        yield Reading(0, (0.0, 1.0))
        released.wait()

    task = replace(tiny, readings=sensor, source="live")
    found = findings(task, [survey(task, FLEET, within_s=0.5)])
    released.set()
    assert "live readings that are not dated" in [one.text for one in found]


def test_live_readings_that_end_or_fail_are_named_as_others_are() -> None:
    ended = survey(replace(tiny, readings=sound, source="live"), FLEET)
    assert (ended.readings, ended.read_s) == (200, None)
    failed = survey(replace(tiny, readings=failing, source="live"), FLEET)
    assert failed.error is not None
    assert "(reading 37, " in failed.error
    assert failed.error == survey(replace(tiny, readings=failing), FLEET).error


def test_devices_whose_counts_differ_have_one_finding() -> None:
    def readings(device: str) -> Iterator[Reading]:
        every = 40 if device == "p" else 50
        for i, reading in enumerate(sound(device)):
            late = 5_000_000 * (i % every == every - 1)
            yield reading._replace(time_us=reading.time_us - late)

    broken = [text for text in said(replace(tiny, readings=readings)) if "break a segment" in text]
    (found,) = broken
    assert found.startswith("warning: p, f: up to 9 of 200 readings break a segment")


def test_silence_that_closes_a_live_session_is_named() -> None:
    live = replace(tiny, source="live", window=Session(1800), idle_close_s=10.0)
    (found,) = [text for text in said(live) if "idle_close_s" in text]
    assert "10 s of silence close a session, whose gap_s is 1800 s" in found
    for other in (replace(live, idle_close_s=1800.0), replace(live, source="recorded")):
        assert not [text for text in said(other) if "idle_close_s" in text]


def test_silence_that_closes_a_sparse_live_count_is_named() -> None:
    def sparse(device: str) -> Iterator[Reading]:
        for n, reading in enumerate(sound(device)):
            yield reading._replace(time_us=n * 60_000_000)

    live = replace(
        tiny, source="live", rate_hz=None, window=Count(50), idle_close_s=10.0, readings=sparse
    )
    (found,) = [text for text in said(live) if "idle_close_s" in text]
    assert "10 s of silence close a window, readings come every 60 s" in found
    for other in ({"idle_close_s": 90.0}, {"source": "recorded"}, {"readings": sound}):
        assert not [t for t in said(replace(live, **other)) if "idle_close_s" in t]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"metric": "average_precision"}, True),
        ({"metric": "average_precision", "retrain": 0.01}, False),
        ({"metric": "accuracy"}, False),
    ],
)
def test_a_class_so_rare_that_no_run_would_start_is_named(
    changes: dict[str, Any], warned: bool
) -> None:
    def rare(device: str) -> Iterator[Reading]:
        for i, reading in enumerate(sound(device)):
            yield reading._replace(label=int(i >= 193))  # 3.5 %

    task = replace(tiny, classes=("sound", "fraud"), readings=rare, **changes)
    found = [text for text in said(task) if "retrain" in text]
    assert len(found) == warned
    if warned:
        assert (
            "a Brier distance of 0.034, and no run starts below 0.05: set retrain=0.02" in found[0]
        )


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "above 0.05 a run stays due: set retrain=0.13, or just above what a good model"),
        ({"retrain": 0.11}, "above 0.11 a run stays due: set retrain=0.13"),
        ({"retrain": 0.13}, None),
        ({"retrain": 0.15}, "no run starts below 0.15: set retrain=0.13"),
        ({"retrain": 0.0}, None),
        ({"metric": "accuracy"}, None),
        ({"outcomes": None}, None),
    ],
)
def test_true_labels_that_may_keep_a_run_due_are_named(
    changes: dict[str, Any], advice: str | None
) -> None:
    def clicks(device: str) -> Iterator[Reading]:
        for i, reading in enumerate(sound(device)):
            yield reading._replace(label=int(i >= 164))  # 18 %

    def outcomes(_device: str, answered: Iterator[Answered]) -> Iterator[Outcome]:
        yield from (Outcome(each.first_us, each.last_us, 1) for each in answered)

    about = {"outcomes": outcomes, "metric": "average_precision", **changes}
    task = replace(tiny, classes=("none", "click"), readings=clicks, **about)
    found = [text for text in said(task) if "retrain" in text]
    assert len(found) == (advice is not None)
    assert advice is None or advice in found[0]
