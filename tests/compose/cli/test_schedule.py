"""`tidewheel schedule` and the runner that fires, as real processes: killed at each step between an
interval that is due and its job."""

import json
import signal
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from streams.batch.jobs.job_folder import now_us
from streams.batch.jobs.job_queue import JobQueue
from streams.batch.jobs.schedules import Cron, Schedules, local
from tests.compose.cli.test_cli import TINY, fails, tidewheel
from tests.compose.cli.test_queue import run, runner
from tests.rig.unwrap import unwrap
from tests.streams.batch.support import good_rows, rows_of, write_parquet

ZONE = ZoneInfo("Europe/Madrid")
CRON = Cron("0 2 * * *", "Europe/Madrid")
DAYS = 3


def days() -> list[str]:
    """The local days on which the last intervals began."""
    last = unwrap(CRON.last(JobQueue(Path()).now()))
    first = local(last, ZONE)
    return [f"{first - timedelta(days=n):%Y-%m-%d}" for n in range(DAYS, 0, -1)]


def command(lake: Path, *more: str, to: str = "out/day={start:%Y-%m-%d}") -> list[str]:
    named = ["--model", str(lake / "model.twa"), "--trust", str(lake / "k.pub")]
    what = ["score", TINY, "lake/day={start:%Y-%m-%d}", "--to", to, "--id", "event"]
    return ["--", *what, *named, *more]


def added(folder: Path, lake: Path, *more: str) -> list[str]:
    """A schedule of three days that are due, and an input for each."""
    for n, day in enumerate(days()):
        write_parquet(folder / "lake" / f"day={day}" / "0.parquet", good_rows(5, n))
    when = ["--cron", CRON.expression, "--timezone", CRON.timezone]
    done = tidewheel("schedule", "add", "nightly", *when, *command(lake, *more), folder=folder)
    assert done.returncode == 0, done.stderr
    behind(folder, DAYS)
    return days()


def behind(folder: Path, count: int) -> None:
    """As if no runner had run for so many days."""
    schedules = Schedules(JobQueue(folder / ".tidewheel"))
    schedule = schedules.find("nightly")
    cursor = schedule.cursor_us
    for _ in range(count):
        found = unwrap(CRON.last(cursor - 1))
        cursor = found
    schedules.write(replace(schedule, cursor_us=cursor))


def shown(folder: Path) -> dict[str, Any]:
    done = tidewheel("schedule", "list", "nightly", "--json", folder=folder)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def complete(folder: Path, named: list[str]) -> None:
    """Each interval has one job, and its rows are those of its input."""
    states = [one["state"] for one in shown(folder)["intervals"]]
    assert states == ["Completed"] * DAYS
    assert len(json.loads(tidewheel("jobs", "list", "--json", folder=folder).stdout)) == DAYS
    for n, day in enumerate(named):
        rows = rows_of(folder / "out" / f"day={day}")
        assert [row["id"] for row in rows] == [row["event"] for row in good_rows(5, n)]


def test_each_interval_that_is_due_is_scored_once_into_its_own_folder(
    tmp_path: Path, lake: Path
) -> None:
    named = added(tmp_path, lake)
    told = run(tmp_path)
    assert [e["kind"] for e in told] == ["schedule"] * 3 + ["begins", "ended"] * 3
    complete(tmp_path, named)
    assert run(tmp_path) == []
    listed = tidewheel("schedule", "list", folder=tmp_path).stdout
    assert listed.startswith("nightly  0 2 * * *  Europe/Madrid  covered until ")


@pytest.mark.parametrize(
    "point",
    ["schedule-step-2:2", "attempt-step-1:1"],
)
def test_a_kill_between_due_and_submitted_runs_no_interval_twice_and_none_is_lost(
    tmp_path: Path, lake: Path, point: str
) -> None:
    named = added(tmp_path, lake)
    with runner(tmp_path, "a", TIDEWHEEL_FAILPOINT=point) as first:
        assert first.wait(60) == -signal.SIGKILL
    run(tmp_path, "--max-running", "2")
    complete(tmp_path, named)


def test_an_interval_without_its_input_fails_with_the_reason_and_is_run_when_it_is_there(
    tmp_path: Path, lake: Path
) -> None:
    named = added(tmp_path, lake)
    gone = tmp_path / "lake" / f"day={named[2]}" / "0.parquet"
    rows = gone.read_bytes()
    gone.unlink()
    done = tidewheel("jobs", "run", "--until-empty", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    newest = shown(tmp_path)["intervals"][0]
    assert newest["state"] == "Failed"
    assert "no such file" in newest["reason"] or "no file" in newest["reason"], newest
    gone.write_bytes(rows)
    again = tidewheel("schedule", "backfill", "nightly", *span(named), folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert tidewheel("jobs", "run", "--until-empty", folder=tmp_path).returncode == 0
    complete(tmp_path, named)


def span(named: list[str]) -> list[str]:
    """The time of all days."""
    begin = datetime.fromisoformat(named[0]).date()
    return ["--from", str(begin), "--to", str(begin + timedelta(days=DAYS + 1))]


def test_a_backfill_scores_the_days_before_the_schedule(tmp_path: Path, lake: Path) -> None:
    named = added(tmp_path, lake)
    schedules, last = Schedules(JobQueue(tmp_path / ".tidewheel")), CRON.last(now_us())
    assert last is not None
    schedules.write(replace(schedules.find("nightly"), cursor_us=last))
    words = span(named)
    done = tidewheel("schedule", "backfill", "nightly", *words, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["jobs"]) == DAYS
    run(tmp_path, "--max-running", "4")
    complete(tmp_path, named)
    again = tidewheel("schedule", "backfill", "nightly", *words, folder=tmp_path)
    assert again.stdout == "3 intervals are queued or have run\n"


def wrong_calls(lake: Path) -> dict[str, tuple[list[str], str]]:
    when = ["--cron", "0 2 * * *"]
    whole = command(lake)
    return {
        "no expression": (["--cron", "often", *whole], "five fields"),
        "no zone": ([*when, "--timezone", "Madrid", *whole], "no such zone"),
        "another command": ([*when, "--", "worker", TINY], "a schedule runs score"),
        "no such option": ([*when, *whole, "--colour", "red"], "score: No such option"),
        "an attribute": ([*when, *command(lake, to="{start.__class__}")], "{start:%Y-%m-%d}"),
        "one folder for all": ([*when, *command(lake, to="out")], "files of its own"),
        "no task": ([*when, "--", "score", "none.py:task", *whole[3:]], "there is no file none.py"),
        "a job of its own": ([*when, *whole, "--job", "x"], "--job is not for a schedule"),
        "no model": (
            [*when, "--", *whole[1:6], "--model", "3-none"],
            "signing.pub is missing",
        ),
        "a name": (["x/y", *when, *whole], "letters, digits"),
    }


@pytest.mark.parametrize("name", sorted(wrong_calls(Path())))
def test_a_wrong_schedule_is_one_line_and_is_not_added(
    tmp_path: Path, lake: Path, name: str
) -> None:
    words, text = wrong_calls(lake)[name]
    words = words if name == "a name" else ["nightly", *words]
    fails(tidewheel("schedule", "add", *words, folder=tmp_path), 2, text)
    assert tidewheel("schedule", "list", folder=tmp_path).stdout.startswith("no schedules")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--label-column", "truth"], "no column 'truth'"),
        (["--as", "readings"], "no column"),
        (["--from", "{start}"], "--from and --until need --time"),
    ],
)
def test_what_each_fire_would_refuse_is_refused_by_add(
    tmp_path: Path, lake: Path, more: list[str], text: str
) -> None:
    """By the input of the last interval."""
    write_parquet(tmp_path / "lake" / f"day={days()[-1]}" / "0.parquet", good_rows(5, 0))
    when = ["nightly", "--cron", CRON.expression, "--timezone", CRON.timezone]
    fails(tidewheel("schedule", "add", *when, *command(lake, *more), folder=tmp_path), 2, text)
    assert tidewheel("schedule", "list", folder=tmp_path).stdout.startswith("no schedules")


def test_add_says_that_the_input_is_not_checked_where_there_is_none_yet(
    tmp_path: Path, lake: Path
) -> None:
    when = ["nightly", "--cron", CRON.expression]
    done = tidewheel("schedule", "add", *when, *command(lake), folder=tmp_path)
    assert done.returncode == 0
    assert "the input's columns are not checked: lake/day=" in done.stderr
