"""`tidewheel jobs`: the jobs of `tidewheel score`."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compose.cli.arguments import DEFAULT_STATE, AsJson, Kafka, State, broker_of
from compose.cli.batch.run import run
from compose.cli.batch.running import (
    MaxErrors,
    Processes,
    Ray,
    Timeout,
    check_report,
    run_job,
    seconds_of,
    tell_counts,
)
from compose.reports.terminal import console, moment, print_json, say
from streams.contract.errors import TidewheelError, UsageError
from streams.contract.task import load_task

if TYPE_CHECKING:
    from compose.reports.jobs import JobReport
    from streams.batch.jobs.job_folder import JobFolder

Name = Annotated[str, typer.Argument(metavar="JOB", help="The job's folder, or its id.")]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.command()(run)


@app.command("list")
def list_jobs(state: State = DEFAULT_STATE, json: AsJson = False) -> None:
    """List the jobs that were submitted with this state folder, the oldest first."""
    from compose.reports.jobs import not_submitted, places_of, read_jobs, told

    found, wrong = read_jobs(state)
    rows = [_row(report) for report in reversed(found)]
    known = {row["id"] for row in rows}
    rows += [not_submitted(place) for id, place in places_of(state).items() if id not in known]
    for line in wrong:
        _warn(line)
    if json:
        print_json(rows)
        return
    for row in rows:
        say(
            f"{row['id']}  {row['state']:<18}  {row['processed']:>12,} of {row['total']:,} rows  "
            f"{moment(row['created_us'])}  {row['job']}{told(row['queue'])}"
        )
    if not rows and not wrong:
        say(f"no jobs in {state}")


@app.command("show")
def show(name: Name, state: State = DEFAULT_STATE, json: AsJson = False) -> None:
    """Show a job's state, its counts and its input, from its folder."""
    from compose.reports.jobs import queue_row, told

    job = _find(state, name)
    report = _report(state, job)
    found, running = report.manifest, report.running
    place = queue_row(report.place)
    if json:
        print_json({**found.model_dump(), "id": report.id, "running": running, "queue": place})
        return
    gone = ", but no process works on it" if report.abandoned else ""
    say(f"{found.state}{gone}: {found.completed} of {found.shards} shards, since "
        f"{moment(found.started_us)}{told(place)}")  # fmt: skip
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
    from compose.cli.batch.queued_job import stop_queued

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
    ray: Ray = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Queue the job for `tidewheel jobs run`.")
    ] = False,
    priority: Annotated[int, typer.Option(help="With --detach: a higher one runs first.")] = 0,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    json: AsJson = False,
) -> None:
    """Do what is missing of a job; a job that is complete stays as it is.

    Refuses input files that have changed since the job began, by name. --max-errors replaces the
    job's limit. Exits as `score`.
    """
    if not detach:
        _go_on(state, name, kafka, json, max_errors, timeout, processes, ray)
        return
    if ray is not None:
        raise UsageError("--ray and --detach: the runner scores on its own machine")
    from compose.cli.batch.queued_job import enqueue_again
    from streams.batch.queue.entries import RunOptions

    job = _find(state, name)
    options = RunOptions(timeout_s=seconds_of(timeout), processes=processes,
                         max_errors=max_errors, kafka=kafka)  # fmt: skip
    identity = enqueue_again(state, job, options, priority)
    say(identity)


@app.command("retry")
def retry(
    name: Name,
    max_errors: MaxErrors = None,
    timeout: Timeout = None,
    processes: Processes = None,
    ray: Ray = None,
    state: State = DEFAULT_STATE,
    kafka: Kafka = None,
    json: AsJson = False,
) -> None:
    """Score the shards again that have rows with errors, in place of their earlier rows, and do
    what is missing. Exits as `score`."""
    from streams.batch.jobs.retrying import mark_failed

    _go_on(state, name, kafka, json, max_errors, timeout, processes, ray, before=mark_failed)


def _go_on(
    state: Path,
    name: str,
    kafka: str | None,
    json: bool,
    max_errors: str | None,
    timeout: str | None,
    processes: int | None,
    ray: str | None,
    before: "Callable[[JobFolder], object]" = lambda _: None,
) -> None:
    from streams.batch.jobs.submission import most_errors

    most_errors(max_errors, 0)
    job = _find(state, name)
    loaded = load_task(job.specification().task.reference)
    with job.locked() as lock:
        before(job)
        run_job(
            job, loaded, json, max_errors, timeout=timeout, processes=processes, ray=ray,
            broker=partial(broker_of, state, kafka), lock=lock,
        )  # fmt: skip


@app.command("report")
def report(
    name: Name,
    path: Annotated[Path, typer.Argument(metavar="FILE.html", help="The page to write.")],
    state: State = DEFAULT_STATE,
) -> None:
    """Write a page of a job's counts, drift, accuracy and errors as they are now."""
    from streams.batch.report.page import write_report

    check_report(path)
    write_report(_find(state, name), path)
    say(f"wrote {path}")


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
                (job.folder / "specification.json").unlink()  # from now on it is no job
                shutil.rmtree(job.folder)
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
    from streams.batch.answering.watching import reference_of
    from streams.batch.jobs.scoring import artifact_of

    reference = reference_of(artifact_of(job, job.specification()))
    return report_of(job, reference, places_of(state))


def _warn(text: str) -> None:
    console(stderr=True).print(f"tidewheel: {text}", markup=False, highlight=False, soft_wrap=True)


def _row(report: "JobReport") -> dict[str, Any]:
    from compose.reports.jobs import queue_row

    found = report.manifest
    chosen = ("state", "reason", "task", "model", "job", "output", "total", "processed")
    return {
        "id": report.id,
        **{name: getattr(found, name) for name in chosen},
        "created_us": found.started_us,
        "running": report.running,
        "queue": queue_row(report.place),
    }
