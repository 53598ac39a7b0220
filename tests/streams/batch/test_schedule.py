"""Schedules on a clock of the test's: intervals that tile the time, catch-up, times in words."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.batch.jobs.job_queue import JobQueue
from streams.batch.jobs.schedules import NOTED, Cron, Schedules, fill, local, micros
from streams.batch.specification import Settings
from streams.contract.errors import UsageError
from tests.rig.made_up.killed import Killed, killed_at

ZONES = ["Europe/Madrid", "America/New_York", "Australia/Lord_Howe", "America/Santiago",
         "Africa/Casablanca", "Europe/Dublin", "Pacific/Apia", "Asia/Kathmandu", "UTC"]  # fmt: skip
EXPRESSIONS = ["30 2 * * *", "0 2 * * *", "*/30 * * * *", "0 */3 * * *", "15 1,2,3 * * 0",
               "0 0 1 * *", "59 23 * * 6"]  # fmt: skip
DAY_US = 86_400_000_000
MADRID = Cron("30 2 * * *", "Europe/Madrid")


def at(text: str) -> int:
    found = datetime.fromisoformat(text)
    return micros(found if found.tzinfo else found.replace(tzinfo=UTC))


TIMES = st.integers(at("2000-01-01"), at("2037-01-01"))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), TIMES, st.data())
def test_intervals_tile_time_in_every_zone_wherever_one_begins_to_count(
    expression: str, zone: str, begin: int, data: st.DataObject
) -> None:
    cron = Cron(expression, zone)
    fires = list(islice(cron.after(begin), 60))
    assert all(a < b for a, b in pairwise([begin, *fires]))
    for a, b in pairwise(fires):
        assert next(cron.after(a)) == b
        inside = data.draw(st.integers(a, b - 1))
        assert next(cron.after(inside)) == b
        assert cron.last(inside) == a
    assert list(cron.intervals(fires[0], fires[-1])) == list(pairwise(fires))


def test_in_the_second_of_two_equal_hours_what_is_over_does_not_fire_again() -> None:
    """In New York it is 01:00 twice on 2017-11-05, at 05:00 and at 06:00 UTC."""
    cron, begin = Cron("15 1,2,3 * * 0", "America/New_York"), at("2017-11-05T06:30Z")
    assert next(cron.after(begin)) == at("2017-11-05T07:15Z")
    assert cron.last(begin) == at("2017-11-05T05:15Z")


def test_half_past_two_in_madrid_on_both_days_of_change() -> None:
    spring = list(MADRID.intervals(at("2026-03-28T02:30+01:00"), at("2026-03-31T00:00Z")))
    assert [(b - a) / 3_600_000_000 for a, b in spring] == [23.5, 23.5]
    assert local(spring[0][1], MADRID.zone).isoformat() == "2026-03-29T03:00:00+02:00"
    autumn = list(MADRID.intervals(at("2026-10-24T02:30+02:00"), at("2026-10-27T00:00Z")))
    assert [(b - a) / 3_600_000_000 for a, b in autumn] == [24, 25]
    assert local(autumn[0][1], MADRID.zone).isoformat() == "2026-10-25T02:30:00+02:00"


@pytest.mark.parametrize(
    ("expression", "zone", "text"),
    [
        ("0 2 * *", "UTC", "five fields"),
        ("* * * * * *", "UTC", "five fields"),
        ("61 * * * *", "UTC", "Bad minute"),
        ("0 0 30 2 *", "UTC", "Bad day-of-month"),
        ("0 2 * * *", "Europe/Nowhere", "no such zone"),
        ("0 2 * * *", "../etc/passwd", "no such zone"),
    ],
)
def test_what_is_no_schedule_is_refused(expression: str, zone: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Cron(expression, zone).check()


@settings(max_examples=200, deadline=None)
@given(st.text("0123456789*/,-LW# ?@abcADJMON\0", max_size=24), st.sampled_from(ZONES))
def test_any_text_is_a_schedule_or_one_line(expression: str, zone: str) -> None:
    cron = Cron(expression, zone)
    try:
        cron.check()
    except UsageError:
        return
    assert next(cron.after(at("2026-01-01"))) > at("2026-01-01")


# --- words ----------------------------------------------------------------------------------------

START = datetime(2026, 3, 29, 1, 30, tzinfo=ZoneInfo("Europe/Madrid"))
END = START + timedelta(days=1)


@pytest.mark.parametrize(
    ("word", "filled"),
    [
        ("{start}", "2026-03-29T01:30:00+01:00"),
        ("s3://lake/day={start:%Y-%m-%d}/", "s3://lake/day=2026-03-29/"),
        ("{start:%H}-{end:%d%z}", "01-30+0200"),
        ("{{start}}", "{start}"),
        ("100%", "100%"),
        ("{end:%%}", "%"),
    ],
)
def test_times_are_filled_in(word: str, filled: str) -> None:
    assert fill(word, START, END) == filled


@pytest.mark.parametrize(
    "word",
    ["{start.__class__}", "{start!r}", "{0}", "{}", "{begin}", "{start", "end}", "{start:%c}",
     "{start:{end}}", "{end[0]}", "{start:%}", "{ start }"],
)  # fmt: skip
def test_nothing_else_is_looked_up(word: str) -> None:
    with pytest.raises(UsageError):
        fill(word, START, END)


# --- the schedules of a state folder --------------------------------------------------------------

SETTINGS = Settings(task="task", inputs=["lake/day={start:%Y-%m-%d}"], to="out/{end:%Y-%m-%d}")


class Clock:
    def __init__(self, text: str) -> None:
        self.now = at(text)

    def __call__(self) -> int:
        return self.now


def made(
    state: Path, clock: Callable[[], int], max_waiting: int = 1000, **more: object
) -> Schedules:
    found = Schedules(JobQueue(state, clock, max_waiting), **more)  # type: ignore[arg-type]
    found.add("nightly", MADRID, SETTINGS)
    return found


def inputs_of(state: Path) -> list[str]:
    return [entry.settings.inputs[0] for entry in JobQueue(state).entries()]


def test_an_interval_is_queued_once_when_it_has_ended(tmp_path: Path) -> None:
    clock = Clock("2026-10-24T12:00Z")
    schedules = made(tmp_path, clock)
    assert list(schedules.fire()) == []
    clock.now = at("2026-10-25T00:31Z")
    (line,) = schedules.fire()
    assert "2026-10-24T02:30:00+02:00..2026-10-25T02:30:00+02:00" in line
    assert list(schedules.fire()) == list(Schedules(JobQueue(tmp_path, clock)).fire()) == []
    clock.now = at("2026-10-24T00:00Z")  # set back
    assert list(schedules.fire()) == []
    clock.now = at("2026-10-25T01:31Z")  # half past two for the second time
    assert list(schedules.fire()) == []
    (entry,) = JobQueue(tmp_path).entries()
    assert entry.settings.inputs == ["lake/day=2026-10-24"]
    assert (entry.settings.to, str(entry.settings.job)) == ("out/2026-10-25", entry.folder)


def test_after_an_outage_the_newest_are_run_and_the_others_are_named(tmp_path: Path) -> None:
    clock = Clock("2026-11-01T12:00Z")
    schedules = made(tmp_path, clock)
    clock.now = at("2026-11-17T12:00Z")
    lines = list(schedules.fire())
    assert len(lines) == 11
    assert "skips 6 intervals 2026-11-01T02:30:00+01:00..2026-11-07T02:30:00+01:00" in lines[0]
    assert inputs_of(tmp_path) == [f"lake/day=2026-11-{day:02}" for day in range(7, 17)]
    assert "6 intervals 2026-11-01" in schedules.find("nightly").skipped


def test_a_schedule_that_fires_for_years_keeps_its_newest_intervals(tmp_path: Path) -> None:
    clock = Clock("2026-11-06T12:00Z")
    schedules = made(tmp_path, clock)
    before = schedules.find("nightly")
    old = {n: n + 1 for n in range(NOTED)}
    schedules.write(replace(before, intervals=old))
    clock.now = at("2026-11-07T12:00Z")
    assert len(list(schedules.fire())) == 1
    after = schedules.find("nightly").intervals
    assert len(after) == NOTED
    assert max(after) == before.cursor_us
    assert list(schedules.fire()) == []


@pytest.mark.parametrize(("step", "count"), [(1, 1), (2, 1), (2, 2), (2, 3), (3, 1)])
def test_a_crash_at_any_step_queues_nothing_twice_and_loses_nothing(
    tmp_path: Path, step: int, count: int
) -> None:
    clock = Clock("2026-11-01T12:00Z")
    schedules = made(tmp_path, clock, reached=killed_at(f"schedule-step-{step}", count))
    clock.now = at("2026-11-04T12:00Z")
    with pytest.raises(Killed):
        list(schedules.fire())
    list(Schedules(JobQueue(tmp_path, clock)).fire())
    assert inputs_of(tmp_path) == [f"lake/day=2026-11-0{day}" for day in (1, 2, 3)]


@pytest.mark.parametrize("meanwhile", ["it has run", "the schedule is another one"])
def test_a_runner_that_was_paused_before_it_queued_an_interval_queues_it_no_more(
    tmp_path: Path, meanwhile: str
) -> None:
    clock = Clock("2026-11-01T12:00Z")
    other = Schedules(JobQueue(tmp_path, clock))

    def reached(point: str) -> None:
        if point == "schedule-step-1" and meanwhile == "it has run":
            list(other.fire())
            for entry in JobQueue(tmp_path).entries():
                JobQueue(tmp_path).finish(entry.id)
        elif point == "schedule-step-1":
            other.remove("nightly")
            other.add("nightly", MADRID, SETTINGS)

    schedules = made(tmp_path, clock, reached=reached)
    clock.now = at("2026-11-02T12:00Z")
    assert list(schedules.fire()) == []
    assert inputs_of(tmp_path) == []


def test_a_full_queue_makes_an_interval_wait_and_is_said_once(tmp_path: Path) -> None:
    clock = Clock("2026-11-01T12:00Z")
    schedules = made(tmp_path, clock, max_waiting=1)
    clock.now = at("2026-11-03T12:00Z")
    first = list(schedules.fire())
    assert "waits: 1 jobs wait" in first[1]
    assert list(schedules.fire()) == []
    (entry,) = JobQueue(tmp_path).entries()
    JobQueue(tmp_path).finish(entry.id)
    assert len(list(schedules.fire())) == 1
    assert schedules.find("nightly").problem == ""


def test_a_backfill_runs_what_has_not_run_and_a_few_at_once(tmp_path: Path) -> None:
    clock = Clock("2026-11-06T12:00Z")
    schedules = made(tmp_path, clock)
    clock.now = at("2026-11-07T12:00Z")
    list(schedules.fire())  # the 6th runs
    clock.now = at("2026-11-08T12:00Z")
    queued, left_out = schedules.backfill("nightly", at("2026-11-03T00:00Z"),
                                          at("2026-11-30T00:00Z"))  # fmt: skip
    assert (len(queued), left_out) == (4, 1)
    assert schedules.backfill("nightly", at("2026-11-03T00:00Z"), clock.now) == ([], 5)
    taken = [schedules.queue.take() for _ in range(4)]
    assert [found and found[0].settings.inputs[0] for found in taken] == [
        "lake/day=2026-11-06", "lake/day=2026-11-03", "lake/day=2026-11-04", None,
    ]  # fmt: skip
    for found in taken:
        if found is not None:
            found[1].close()


def test_a_removed_schedule_may_come_back_with_jobs_of_its_own(tmp_path: Path) -> None:
    clock = Clock("2026-11-06T12:00Z")
    schedules = made(tmp_path, clock)
    first = schedules.find("nightly").entry((0, 1), tmp_path)
    with pytest.raises(UsageError, match="there is a schedule nightly"):
        schedules.add("nightly", MADRID, SETTINGS)
    schedules.remove("nightly")
    with pytest.raises(UsageError, match="no schedule nightly"):
        schedules.remove("nightly")
    clock.now += 1
    schedules.add("nightly", MADRID, SETTINGS)
    second = schedules.find("nightly").entry((0, 1), tmp_path)
    assert first.id != second.id
    assert first.folder != second.folder
