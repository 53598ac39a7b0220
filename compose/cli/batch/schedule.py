"""`tidewheel schedule`: batch jobs at set times."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compose.cli.arguments import DEFAULT_STATE, AsJson, State
from compose.cli.batch.running import seconds_of
from compose.reports.terminal import print_json, say
from streams.contract.errors import UsageError
from streams.contract.task import DEVICE_NAME, load_task

if TYPE_CHECKING:
    from streams.batch.queue.entries import RunOptions
    from streams.batch.schedule.cron import Cron
    from streams.batch.schedule.records import Decided, Schedule

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]
Begin = Annotated[
    str, typer.Option("--from", metavar="TIME", help="The first time, ISO 8601; in the zone of "
                      "the schedule where it has no offset.")
]  # fmt: skip
End = Annotated[str, typer.Option("--to", metavar="TIME", help="The time before which to end.")]
RECENT = 100  # intervals that are looked at
SHOWN = 10

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("add")
def add(
    name: Name,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="-- score TASK ...",
            help="The command, with {start} and {end} of the interval, or {start:%Y-%m-%d}.",
        ),
    ],
    cron: Annotated[str, typer.Option(metavar="EXPRESSION", help="Five fields, as '0 2 * * *'.")],
    timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="The time zone, as Europe/Madrid.")
    ] = "UTC",
    max_catch_up: Annotated[
        int,
        typer.Option(min=1, help="Intervals that are run after an outage; older ones are skipped."),
    ] = 10,
    state: State = DEFAULT_STATE,
    json: AsJson = False,
) -> None:
    """Add a schedule: at each fire `tidewheel jobs run` queues a job for the time since the fire
    before.

    The command is written behind `--`. Each interval of event time is run once, from its start to
    before its end. The first one begins with the last fire up to now.
    """
    from streams.batch.schedule.cron import Cron
    from streams.batch.schedule.schedules import Schedules

    if not DEVICE_NAME.fullmatch(name):
        raise UsageError(f"{name!r}: letters, digits, '.', '_' and '-' only, at most 63")
    times = Cron(cron, timezone)
    times.check()
    options, priority, expires_s = _checked(words, times)
    found = Schedules(state).add(name, times, options, max_catch_up, priority, expires_s)
    _say(state, [found], json)


def _checked(words: list[str], cron: "Cron") -> "tuple[RunOptions, int, float | None]":
    """Return how a schedule's jobs run; raise UsageError for a command that cannot be one."""
    from compose.cli.batch.queued_job import run_options
    from compose.cli.batch.score_words import read_words
    from streams.batch.jobs.submission import most_errors
    from streams.batch.records.documents import FILES
    from streams.batch.schedule.template import fill, has_times
    from streams.batch.sinks.targets import target_of

    if words[0] != "score":
        raise UsageError(f"{words[0]}: a schedule runs score: write -- score TASK INPUT ...")
    now = datetime.now(cron.zone)
    plain, found = read_words(words[1:]), read_words([fill(word, now, now) for word in words[1:]])
    for given, option in ((found.job, "--job"), (found.inputs == ["-"], "the input -")):
        if given:
            raise UsageError(f"{option} is not for a schedule: each run has a job of its own")
    if target_of(found.to, found.output_format).kind in FILES and not has_times(plain.to):
        raise UsageError(
            f"--to {plain.to}: each run needs files of its own: write {{start:%Y-%m-%d}} in it, "
            "or name a table"
        )
    found.request()
    load_task(found.task)
    most_errors(found.max_errors, 0)
    options = run_options(plain, words[1:])
    return options, found.priority, seconds_of(found.expires_after, "--expires-after")


@app.command("list")
def list_schedules(state: State = DEFAULT_STATE, json: AsJson = False) -> None:
    """List the schedules, with their next fires and what was skipped."""
    from streams.batch.schedule.schedules import Schedules

    found = Schedules(state).all()
    _say(state, found, json)
    if not found and not json:
        say(f"no schedules in {state}")


@app.command("show")
def show(name: Name, state: State = DEFAULT_STATE, json: AsJson = False) -> None:
    """Show a schedule's command and its last intervals, with their jobs."""
    from streams.batch.schedule.records import span
    from streams.batch.schedule.schedules import Schedules

    schedules = Schedules(state)
    found = schedules.find(name)
    rows = [_interval(one) for one in schedules.decided(name)]
    if json:
        print_json({**_row(state, found), "intervals": rows})
        return
    _say(state, [found], json)
    say(f"  score {' '.join(found.options.words or [])}")
    for row in rows[:SHOWN]:
        about = "  ".join(part for part in (row["job"], row["reason"]) if part)
        say(f"  {span(found, (row['start_us'], row['end_us']))}  {row['state']}  {about}")


@app.command("remove")
def remove(name: Name, state: State = DEFAULT_STATE) -> None:
    """Remove a schedule and its history. Jobs that were queued stay."""
    from streams.batch.schedule.schedules import Schedules

    Schedules(state).remove(name)
    say(f"removed the schedule {name}")


@app.command("run")
def run(name: Name, state: State = DEFAULT_STATE, json: AsJson = False) -> None:
    """Queue the interval that has ended last now, if it has not run."""
    from streams.batch.schedule.records import span
    from streams.batch.schedule.schedules import Schedules

    schedules = Schedules(state)
    found, interval = schedules.find(name), schedules.newest(name)
    if interval is None:
        raise UsageError(f"schedule {name} has not fired in years: there is no interval to run")
    queued, _ = schedules.backfill(name, *interval, 1)
    if not queued:
        raise UsageError(f"{span(found, interval)} of {name} is queued or has run: "
                         f"tidewheel schedule show {name}")  # fmt: skip
    _queued([entry.id for entry in queued], 0, json)


@app.command("backfill")
def backfill(
    name: Name,
    begin: Begin,
    end: End,
    max_active: Annotated[int, typer.Option(min=1, help="Jobs of it that run at once.")] = 2,
    state: State = DEFAULT_STATE,
    json: AsJson = False,
) -> None:
    """Queue the intervals between two times that have ended and have not run, the oldest first."""
    from streams.batch.schedule.schedules import Schedules

    schedules = Schedules(state)
    zone = schedules.find(name).cron.zone
    first, last = (_time(text, option, zone) for text, option in ((begin, "--from"), (end, "--to")))
    queued, left_out = schedules.backfill(name, first, last, max_active)
    if not queued and not left_out:
        raise UsageError(f"no interval of {name} lies between {begin} and {end} and has ended")
    _queued([entry.id for entry in queued], left_out, json)


def _queued(jobs: list[str], left_out: int, json: bool) -> None:
    if json:
        print_json({"jobs": jobs, "left_out": left_out})
        return
    for job in jobs:
        say(job)
    if left_out:
        say(f"{left_out:,} intervals are queued or have run")


def _time(text: str, option: str, zone: Any) -> int:
    from streams.batch.schedule.cron import micros

    try:
        found = datetime.fromisoformat(text)
        return micros(found if found.tzinfo else found.replace(tzinfo=zone))
    except (ValueError, OverflowError) as exc:
        raise UsageError(
            f"{option} {text}: write a time as 2026-03-29 or 2026-03-29T02:00"
        ) from exc


def _row(state: Path, schedule: "Schedule") -> dict[str, Any]:
    from streams.batch.schedule.schedules import SKIPPED, Schedules

    rows = Schedules(state).decided(schedule.name, RECENT)
    return {
        "name": schedule.name,
        "cron": schedule.cron.expression,
        "timezone": schedule.cron.timezone,
        "words": ["score", *(schedule.options.words or [])],
        "covered_until_us": schedule.cursor_us,
        "next_us": next(schedule.cron.after(schedule.cursor_us)),
        "max_catch_up": schedule.max_catch_up,
        "priority": schedule.priority,
        "problem": schedule.problem,
        "skipped": [
            {"start_us": one.start_us, "end_us": one.end_us, "reason": one.reason}
            for one in rows
            if one.state == SKIPPED
        ],
    }


def _interval(decided: "Decided") -> dict[str, Any]:
    """Return what became of an interval; its job's folder says it, where there is one."""
    from streams.batch.jobs.job_folder import JobFolder

    found = asdict(decided)
    if decided.folder is not None and (job := JobFolder(Path(decided.folder))).submitted:
        status = job.state()
        found.update(state=status.state, reason=status.reason)
    return found


def _say(state: Path, schedules: "list[Schedule]", json: bool) -> None:
    from streams.batch.schedule.cron import local
    from streams.batch.schedule.records import span

    rows = [_row(state, one) for one in schedules]
    if json:
        print_json(rows)
        return
    for schedule, row in zip(schedules, rows, strict=True):
        following = local(row["next_us"], schedule.cron.zone).isoformat()
        covered = local(row["covered_until_us"], schedule.cron.zone).isoformat()
        say(f"{row['name']}  {row['cron']}  {row['timezone']}  covered until {covered}, next fire "
            f"{following}{'  ' + row['problem'] if row['problem'] else ''}")  # fmt: skip
        for one in row["skipped"]:
            say(f"  skipped {span(schedule, (one['start_us'], one['end_us']))}: {one['reason']}")
