"""`tidewheel jobs`: the jobs of `tidewheel score`."""

from pathlib import Path
from typing import Annotated

import typer

from compose.cli.arguments import AsJson
from compose.cli.batch.running import MaxErrors, run_job, tell_counts
from compose.reports.terminal import moment, print_json, say
from streams.contract.task import load_task

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The job's folder.")]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command("resume")
def resume(folder: Folder, max_errors: MaxErrors = None, json: AsJson = False) -> None:
    """Do what is missing of a job; a job that is complete stays as it is.

    Refuses input files that have changed since the job began, by name. --max-errors replaces the
    job's limit. Exits as `score`.
    """
    from streams.batch.jobs.job_folder import JobFolder
    from streams.batch.jobs.submission import most_errors

    most_errors(max_errors, 0)
    job = JobFolder(folder.absolute())
    loaded = load_task(job.specification().task.reference)
    with job.locked():
        run_job(job, loaded, json, max_errors)


@app.command("show")
def show(folder: Folder, json: AsJson = False) -> None:
    """Show a job's state, its counts and its input, from its folder."""
    from streams.batch.jobs.job import manifest_of
    from streams.batch.jobs.job_folder import JobFolder
    from streams.batch.records.documents import Plan

    job = JobFolder(folder.absolute())
    specification, status = job.specification(), job.state()
    plan = job.plan() or Plan(files=[], shards=[])
    found = manifest_of(job, specification, plan, status.state, status.reason)
    found = found.model_copy(update={"ended_us": status.updated_us})
    running = job.running
    if json:
        print_json({**found.model_dump(), "running": running})
        return
    over = found.state in ("Completed", "Failed", "Stopped")
    gone = "" if running or over else ", but no process works on it"
    say(f"{found.state}{gone}: {found.completed} of {found.shards} shards, since "
        f"{moment(found.started_us)}")  # fmt: skip
    tell_counts(found)
    for file in found.inputs:
        say(f"  input {file.name}: {file.rows:,} rows, sha256 {file.sha256[:12]}")
    if not running and found.state != "Completed":
        say(f"tidewheel jobs resume {folder}")
