"""`tidewheel jobs`: the jobs of `tidewheel score`, from their folders and the queue."""

from pathlib import Path
from typing import Annotated

import typer

from compose.cli.arguments import DEFAULT_STATE, AsJson, State
from compose.cli.batch.run import run
from compose.cli.batch.score import option_of, run_job, warn
from compose.reports.terminal import moment, print_json, say
from streams.contract.errors import UsageError
from streams.contract.task import load_task

GONE = "its output was moved, changed or deleted"

Name = Annotated[str, typer.Argument(metavar="JOB", help="The job's folder, or its id.")]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.command()(run)


@app.command("list")
def list_jobs(
    name: Annotated[str | None, typer.Argument(metavar="[JOB]", help="That one alone.")] = None,
    state: State = DEFAULT_STATE,
    json: AsJson = False,
) -> None:
    """List the jobs that were submitted with this state folder, the oldest first; of one its
    counts, its input and what happened to it, from its folder."""
    from compose.reports.jobs import read_jobs

    if name is not None:
        _show(name, state, json=json)
        return
    rows, wrong = read_jobs(state)
    for line in wrong:
        warn(line)
    if json:
        print_json(rows[::-1])
        return
    for row in rows[::-1]:
        then = "interrupted: resume it" if row.abandoned else row.queue or ""
        if row.processed is None:
            then = GONE
        known = "?" if row.processed is None else f"{row.processed:,}"
        say(
            f"{row.id}  {row.state:<18}  {known:>12} of {row.total:,} rows  "
            f"{moment(row.created_us)}  {row.job}  {then}".rstrip()
        )
    if not rows and not wrong:
        say(f"no jobs in {state}")


def _show(name: str, state: Path, *, json: bool) -> None:
    from compose.reports.jobs import places_of, row_of
    from streams.batch.jobs.job_folder import JobIndex
    from streams.batch.jobs.manifest import manifest_of, summary_of

    job = JobIndex(state).find(name)
    found = manifest_of(job)
    row = row_of(job, found, places_of(state))
    if json:
        more = {"id": row.id, "running": row.running, "queue": row.queue, "log": job.log()}
        more["processed"] = row.processed
        print_json({**found.fields(), **more})
        return
    gone = ", but no process works on it" if row.abandoned else ""
    gone = f", but {GONE}" if row.processed is None else gone
    say(f"{row.state}{gone}: {row.completed} of {row.shards} shards, since "
        f"{moment(row.created_us)}  {row.queue or ''}".rstrip())  # fmt: skip
    for line in summary_of(found):
        say(f"  {line}")
    for file in found.inputs:
        say(f"  input {file.name}: {file.rows:,} rows, crc32c {file.crc32c}")
    for entry in job.log():
        say(f"  {moment(entry['time_us'])}  {entry['text']}")
    if not row.running and row.queue is None and row.state != "Completed":
        say(f"tidewheel jobs resume {job.folder}")


@app.command("stop")
def stop(name: Name, state: State = DEFAULT_STATE) -> None:
    """Take a job from the queue, or ask the process that works on it to end after the shards that
    it scores now."""
    from streams.batch.jobs.job_folder import Held, JobIndex
    from streams.batch.jobs.job_queue import JobQueue

    queue, named = JobQueue(state), str(Path(name).absolute())
    entry = next((e for e in queue.entries() if named == e.folder or name == e.id), None)
    job = JobIndex(state).find(name) if entry is None else entry.job
    if entry is None:
        job.specification()
        if not job.running:
            raise UsageError(f"no process works on {job.folder}: it is {job.state().state}")
    job.request_stop(True)  # seen by the process that works on it, or begins now
    if entry is not None:
        try:
            with job.locked():
                job.write_state("Stopped")
                queue.finish(entry.id)
                say(f"{entry.id} is taken from the queue")
                return
        except Held:
            pass
    say(f"{job.folder} stops after its current shards")


@app.command("resume")
def resume(
    name: Name,
    max_errors: option_of("max_errors") = None,  # type: ignore[valid-type]
    timeout: option_of("timeout") = None,  # type: ignore[valid-type]
    processes: option_of("processes") = None,  # type: ignore[valid-type]
    failed: Annotated[
        bool,
        typer.Option(
            "--failed",
            help="Also score the shards again that have rows with errors, in place of these rows.",
        ),
    ] = False,
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
    from streams.batch.jobs.job_folder import JobIndex
    from streams.batch.jobs.job_queue import Entry, JobQueue

    if failed and detach:
        raise UsageError("--failed and --detach: give one of them")
    job = JobIndex(state).find(name)
    found = job.specification()
    # times and processes are of each call
    settings = found.settings.replace(timeout=None, processes=None, expires_after=None)
    settings = settings.changed(max_errors=max_errors, timeout=timeout, processes=processes)
    with job.locked() as lock:
        if failed:
            job.mark_failed()
        if not detach:
            run_job(job, load_task(found.task.reference), settings, lock, json)
            return
        if job.state().state == "Completed":
            raise UsageError(f"{job.folder} is Completed: there is nothing to resume")
        job.request_stop(False)
        JobQueue(state).add(Entry(found.id, str(job.folder), settings))
        say(found.id)
