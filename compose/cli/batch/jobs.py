"""`tidewheel jobs`: the jobs of `tidewheel score`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compose.cli.arguments import DEFAULT_STATE, AsJson, State
from compose.cli.batch.run import run
from compose.cli.batch.running import MaxErrors, Processes, Timeout, run_job, tell_counts
from compose.reports.terminal import console, moment, print_json, say
from streams.contract.errors import TidewheelError, UsageError
from streams.contract.task import load_task

if TYPE_CHECKING:
    from compose.reports.jobs import JobReport
    from streams.batch.jobs.job_folder import JobFolder
    from streams.batch.records.settings import Settings

Name = Annotated[str, typer.Argument(metavar="JOB", help="The job's folder, or its id.")]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.command()(run)


@app.command("list")
def list_jobs(state: State = DEFAULT_STATE, json: AsJson = False) -> None:
    """List the jobs that were submitted with this state folder, the oldest first."""
    from compose.reports.jobs import list_jobs as listed
    from compose.reports.jobs import place_text

    rows, wrong = listed(state)
    for line in wrong:
        _warn(line)
    if json:
        print_json(rows)
        return
    for row in rows:
        say(
            f"{row.id}  {row.state:<18}  {row.processed:>12,} of {row.total:,} rows  "
            f"{moment(row.created_us)}  {row.job}{place_text(row.queue)}"
        )
    if not rows and not wrong:
        say(f"no jobs in {state}")


@app.command("show")
def show(name: Name, state: State = DEFAULT_STATE, json: AsJson = False) -> None:
    """Show a job's state, its counts and its input, from its folder."""
    from compose.reports.jobs import place_text, queue_row

    job = _find(state, name)
    report = _report(state, job)
    found, running = report.manifest, report.running
    place = queue_row(report.place)
    if json:
        print_json({**found.model_dump(), "id": report.id, "running": running, "queue": place})
        return
    gone = ", but no process works on it" if report.abandoned else ""
    say(f"{found.state}{gone}: {found.completed} of {found.shards} shards, since "
        f"{moment(found.started_us)}{place_text(place)}")  # fmt: skip
    tell_counts(found)
    for file in found.inputs:
        say(f"  input {file.name}: {file.rows:,} rows, sha256 {file.sha256[:12]}")
    if not running and report.place is None and found.state != "Completed":
        say(f"tidewheel jobs resume {job.folder}")


@app.command("logs")
def logs(name: Name, state: State = DEFAULT_STATE, json: AsJson = False) -> None:
    """Print what happened to a job: its states, repeated attempts, loads that were tried again."""
    job = _find(state, name)
    job.specification()
    if json:
        print_json(job.log())
        return
    for line in job.log():
        say(f"{moment(line['time_us'])}  {line['text']}")


@app.command("stop")
def stop(name: Name, state: State = DEFAULT_STATE) -> None:
    """Take a job from the queue, or ask the process that works on it to end after the shards that
    it scores now."""
    from compose.cli.batch.submitting import stop_queued

    if (text := stop_queued(state, name)) is not None:
        say(text)
        return
    job = _find(state, name)
    job.specification()
    if not job.running:
        raise UsageError(f"no process works on {job.folder}: it is {job.state().state}")
    job.request_stop(True)
    say(f"{job.folder} stops after its current shards")


@app.command("resume")
def resume(
    name: Name,
    max_errors: MaxErrors = None,
    timeout: Timeout = None,
    processes: Processes = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Queue the job for `tidewheel jobs run`.")
    ] = False,
    state: State = DEFAULT_STATE,
    json: AsJson = False,
) -> None:
    """Do what is missing of a job; a job that is complete stays as it is.

    Refuses input files that have changed since the job began, by name. --max-errors replaces the
    job's limit. Exits as `score`.
    """
    if not detach:
        _go_on(state, name, json, max_errors, timeout, processes)
        return
    from compose.cli.batch.submitting import enqueue_again

    job = _find(state, name)
    say(enqueue_again(state, job, _asked(job, max_errors, timeout, processes)))


@app.command("retry")
def retry(
    name: Name,
    max_errors: MaxErrors = None,
    timeout: Timeout = None,
    processes: Processes = None,
    state: State = DEFAULT_STATE,
    json: AsJson = False,
) -> None:
    """Score the shards again that have rows with errors, in place of their earlier rows, and do
    what is missing. Exits as `score`."""
    from streams.batch.jobs.loads import mark_failed

    _go_on(state, name, json, max_errors, timeout, processes, before=mark_failed)


def _go_on(
    state: Path,
    name: str,
    json: bool,
    max_errors: str | None,
    timeout: str | None,
    processes: int | None,
    before: "Callable[[JobFolder], object]" = lambda _: None,
) -> None:
    job = _find(state, name)
    settings = _asked(job, max_errors, timeout, processes)
    task = load_task(job.specification().task.reference)
    with job.locked() as lock:
        before(job)
        run_job(job, task, settings, lock, json)


def _asked(
    job: "JobFolder", max_errors: str | None, timeout: str | None, processes: int | None
) -> "Settings":
    """Return a job's settings with those of this call; time and processes are of each call."""
    before = job.specification().settings.model_copy(update={"timeout": None, "processes": None})
    return before.changed(max_errors=max_errors, timeout=timeout, processes=processes)


@app.command("prune")
def prune(
    days: Annotated[
        float, typer.Option("--older-than", min=0, metavar="DAYS", help="Since the job's end.")
    ] = 30.0,
    state: State = DEFAULT_STATE,
    json: AsJson = False,
) -> None:
    """Remove the folders of jobs that are over. Their outputs stay."""
    from streams.batch.jobs.job_index import JobIndex, is_older

    index, removed = JobIndex(state), []
    for _, job in index.jobs():
        try:
            over = is_older(job, days) and not job.running
        except TidewheelError as exc:
            _warn(f"left alone: {exc}")
            continue
        if over:
            with job.locked():
                job.remove()
            removed.append(str(job.folder))
    index.forget_missing()
    if json:
        print_json(removed)
        return
    for folder in removed:
        say(f"removed {folder}")
    say(f"{len(removed)} of the jobs in {state} are removed")


def _find(state: Path, name: str) -> "JobFolder":
    from streams.batch.jobs.job_index import JobIndex

    return JobIndex(state).find(name)


def _report(state: Path, job: "JobFolder") -> "JobReport":
    from compose.reports.jobs import places_of, report_of
    from streams.batch.answering.drift import reference_of
    from streams.batch.jobs.scoring import artifact_of

    reference = reference_of(artifact_of(job, job.specification()))
    return report_of(job, reference, places_of(state))


def _warn(text: str) -> None:
    console(stderr=True).print(f"tidewheel: {text}", markup=False, highlight=False, soft_wrap=True)
