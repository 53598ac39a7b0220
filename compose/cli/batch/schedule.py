"""`tidewheel schedule`: batch jobs at set times."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compose.cli.arguments import DEFAULT_STATE, AsJson, State
from compose.reports.terminal import print_json, say
from streams.contract.errors import UsageError
from streams.contract.task import DEVICE_NAME, load_task

if TYPE_CHECKING:
    from streams.batch.jobs.schedules import Cron, Schedule, Schedules
    from streams.batch.specification import Settings

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]
Begin = Annotated[
    str, typer.Option("--from", metavar="TIME", help="The first time, ISO 8601; in the zone of "
                      "the schedule where it has no offset.")
]  # fmt: skip
End = Annotated[str, typer.Option("--to", metavar="TIME", help="The time before which to end.")]
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
    state: State = DEFAULT_STATE,
    json: AsJson = False,
) -> None:
    """Add a schedule: at each fire `tidewheel jobs run` queues a job for the time since the fire
    before.

    The command is written behind `--`. Each interval of event time is run once, from its start to
    before its end. The first one begins with the last fire up to now. After an outage the newest
    ten are run, older ones are skipped.
    """
    from streams.batch.jobs.schedules import Cron

    if not DEVICE_NAME.fullmatch(name):
        raise UsageError(f"{name!r}: letters, digits, '.', '_' and '-' only, at most 63")
    times = Cron(cron, timezone)
    times.check()
    found = _schedules(state).add(name, times, _checked(name, words, times, state))
    if json:
        print_json([_row(found)])
    else:
        _say([found])


def _checked(name: str, words: list[str], cron: "Cron", state: Path) -> "Settings":
    """Return the settings of a schedule's jobs; raise UsageError for a command that cannot be one,
    or that `score` refuses for the input of the last interval."""
    from compose.cli.batch.score import read_words, warn
    from compose.cli.batch.submitting import model_of
    from streams.batch.jobs.job_folder import now_us
    from streams.batch.jobs.schedules import Schedule
    from streams.batch.jobs.submission import specify
    from streams.batch.output_files import target_of
    from streams.batch.sources.inputs import find_inputs
    from streams.batch.specification import FILES

    if words[0] != "score":
        raise UsageError(f"{words[0]}: a schedule runs score: write -- score TASK INPUT ...")
    asked = read_words(words[1:])
    if asked.job:
        raise UsageError("--job is not for a schedule: each run has a job of its own")
    now = now_us()
    end = cron.last(now) or now
    schedule = Schedule(name, cron, asked, now, end)
    past, coming = (
        schedule.entry(interval, state).settings.changed(state=state)
        for interval in ((cron.last(end - 1) or end, end), (end, next(cron.after(end))))
    )
    if target_of(past.to, past.output_format).kind in FILES and past.to == asked.to:
        raise UsageError(
            f"--to {asked.to}: each run needs files of its own: write {{start:%Y-%m-%d}} in it, "
            "or name a table"
        )
    task = load_task(past.task)
    models = model_of(task, past)
    try:
        find_inputs(past.inputs)
    except UsageError as exc:
        warn(f"the input's columns are not checked: {exc}")
    else:
        specify(task, past.changed(to=coming.to), models)
    return asked


@app.command("list")
def list_schedules(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="That one alone.")] = None,
    state: State = DEFAULT_STATE,
    json: AsJson = False,
) -> None:
    """List the schedules, with their next fires and what was skipped; of one also its last
    intervals, with their jobs, and with --json its command."""
    schedules = _schedules(state)
    found = schedules.all() if name is None else [schedules.find(name)]
    rows = [_row(one) for one in found]
    if name is not None:
        rows[0]["intervals"] = schedules.decided(found[0])
    if json:
        print_json(rows if name is None else rows[0])
        return
    _say(found)
    for one in rows[0]["intervals"][:SHOWN] if name is not None else []:
        about = "  ".join(part for part in (one["job"], one["reason"]) if part)
        say(f"  {found[0].span((one['start_us'], one['end_us']))}  {one['state']}  {about}")
    if not found:
        say(f"no schedules in {state}")


@app.command("remove")
def remove(name: Name, state: State = DEFAULT_STATE) -> None:
    """Remove a schedule and its history. Jobs that were queued stay."""
    _schedules(state).remove(name)
    say(f"removed the schedule {name}")


@app.command("backfill")
def backfill(
    name: Name,
    begin: Begin,
    end: End,
    state: State = DEFAULT_STATE,
    json: AsJson = False,
) -> None:
    """Queue the intervals between two times that have ended and have not run, the oldest first;
    at most two run at once."""
    schedules = _schedules(state)
    zone = schedules.find(name).cron.zone
    first, last = (_time(text, option, zone) for text, option in ((begin, "--from"), (end, "--to")))
    queued, left_out = schedules.backfill(name, first, last)
    if not queued and not left_out:
        raise UsageError(f"no interval of {name} lies between {begin} and {end} and has ended")
    if json:
        print_json({"jobs": [entry.id for entry in queued], "left_out": left_out})
        return
    for entry in queued:
        say(entry.id)
    if left_out:
        say(f"{left_out:,} intervals are queued or have run")


def _schedules(state: Path) -> "Schedules":
    from streams.batch.jobs.job_queue import JobQueue
    from streams.batch.jobs.schedules import Schedules

    return Schedules(JobQueue(state))


def _time(text: str, option: str, zone: Any) -> int:
    from streams.batch.jobs.schedules import micros

    try:
        found = datetime.fromisoformat(text)
        return micros(found if found.tzinfo else found.replace(tzinfo=zone))
    except (ValueError, OverflowError) as exc:
        raise UsageError(
            f"{option} {text}: write a time as 2026-03-29 or 2026-03-29T02:00"
        ) from exc


def _row(schedule: "Schedule") -> dict[str, Any]:
    return {
        "name": schedule.name,
        "cron": schedule.cron.expression,
        "timezone": schedule.cron.timezone,
        "settings": schedule.settings,
        "covered_until_us": schedule.cursor_us,
        "next_us": next(schedule.cron.after(schedule.cursor_us)),
        "problem": schedule.problem,
        "skipped": schedule.skipped,
    }


def _say(schedules: "list[Schedule]") -> None:
    from streams.batch.jobs.schedules import local

    for one in schedules:
        covered, following = (
            local(time_us, one.cron.zone).isoformat()
            for time_us in (one.cursor_us, next(one.cron.after(one.cursor_us)))
        )
        say(f"{one.name}  {one.cron.expression}  {one.cron.timezone}  covered until {covered}, "
            f"next fire {following}  {one.problem}".rstrip())  # fmt: skip
        if one.skipped:
            say(f"  skipped {one.skipped}")
