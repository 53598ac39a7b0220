"""Jobs of the queue: they are put into it, and run in the process of an attempt."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from compose.cli.arguments import broker_of
from compose.cli.batch.running import check_report, seconds_of
from compose.cli.batch.score_options import ScoreOptions, refuse_submitted, specified
from compose.reports.terminal import print_json, say
from streams.batch.jobs.job import Job, submit
from streams.batch.jobs.job_folder import Held, JobFolder, now_us
from streams.batch.jobs.job_index import JobIndex
from streams.batch.jobs.submission import most_errors
from streams.batch.queue.entries import Entry, NewEntry, RunOptions
from streams.batch.queue.job_queue import JobQueue
from streams.contract.errors import TidewheelError, UsageError
from streams.contract.task import load_task
from streams.runtime.failpoints import Failpoint, read_failpoint


def enqueue(options: ScoreOptions) -> None:
    """Queue a job, and print its id."""
    check_report(options.report)
    expires_us = expiry(options.expires_after)
    found = specified(options)
    folder, identity = found.folder, found.specification.id
    reached = read_failpoint(os.environ)
    entry = NewEntry(
        identity, str(folder.folder), run_options(options), options.priority, expires_us
    )
    with folder.locked():
        refuse_submitted(folder)
        JobQueue(options.state).add(entry, options.max_waiting)
        submit(folder, found.specification, found.models, reached)
        JobIndex(options.state).add(identity, folder)
        folder.write_state("Scheduled")
    if options.json:
        print_json({"id": identity, "job": str(folder.folder), "state": "Scheduled"})
    else:
        say(identity)


def enqueue_again(state: Path, folder: JobFolder, options: RunOptions, priority: int) -> str:
    """Queue a job that was submitted before; return its id."""
    identity = folder.specification().id
    most_errors(options.max_errors, 0)
    with folder.locked():
        if folder.state().state == "Completed":
            raise UsageError(f"{folder.folder} is Completed: there is nothing to resume")
        JobQueue(state).add(NewEntry(identity, str(folder.folder), options, priority))
        folder.request_stop(False)
        JobIndex(state).add(identity, folder)
        folder.write_state("Scheduled")
    return identity


def stop_queued(state: Path, name: str) -> str | None:
    """Stop a queued job, named by its id or its folder; return what to say, None if it is not in
    the queue."""
    queue, named = JobQueue(state), str(Path(name).absolute())
    entry = next((e for e in queue.entries() if named == e.folder or name == e.id), None)
    if entry is None:
        return None
    folder = JobFolder(Path(entry.folder))
    if not folder.submitted and queue.withdraw(entry.id, "Stopped"):
        return f"{entry.id} is taken from the queue"
    folder.request_stop(True)  # seen by the process that has claimed it, or claims it now
    if entry.waits:
        try:
            with folder.locked():
                waits = (now := queue.entry(entry.id)) is not None and now.waits
                if waits:
                    folder.write_state("Stopped")
                    queue.withdraw(entry.id, "Stopped")
                    return f"{folder.folder} is taken from the queue"
        except Held:
            pass
    return f"{folder.folder} stops after its current shards"


def run_options(options: ScoreOptions, words: list[str] | None = None) -> RunOptions:
    report = None if options.report is None else str(options.report.absolute())
    return RunOptions(
        timeout_s=seconds_of(options.timeout),
        processes=options.processes,
        report=report,
        kafka=options.kafka,
        words=words,
        cwd=str(Path.cwd()),
    )


def expiry(text: str | None) -> int | None:
    """Return when a job that is queued now expires."""
    seconds = seconds_of(text, "--expires-after")
    return None if seconds is None else now_us() + int(seconds * 1e6)


# --- in the process of an attempt ---------------------------------------------------------------


def submit_scheduled(state: Path, reached: Failpoint, entry: Entry) -> None:
    """Write the specification of a scheduled job, whose folder is held; raise UsageError if it
    cannot work."""
    from compose.cli.batch.score_words import read_words

    options, folder = entry.options, JobFolder(Path(entry.folder))
    assert options.words is not None
    os.chdir(options.cwd)
    given = [*options.words, "--job", str(folder.folder), "--state", str(state)]
    found = specified(read_words(given))
    specification = found.specification.model_copy(update={"id": entry.id})
    submit(folder, specification, found.models, reached)


def run_queued(
    state: Path, stopping: Callable[[], bool], reached: Failpoint, entry: Entry, lock: int
) -> None:
    """Run a queued job whose folder is held."""
    options, folder = entry.options, JobFolder(Path(entry.folder))
    JobIndex(state).add(entry.id, folder)
    if options.cwd:
        os.chdir(options.cwd)
    task = load_task(folder.specification().task.reference)
    found = Job(
        folder,
        task,
        stopping=stopping,
        reached=reached,
        max_errors=options.max_errors,
        timeout_s=options.timeout_s,
        processes=options.processes,
        broker=partial(broker_of, state, options.kafka),
        lock=lock,
        from_queue=True,
    ).run()
    if options.report is not None and found.state in ("Completed", "PartiallyCompleted"):
        from streams.batch.report.page import write_report

        try:
            write_report(folder, Path(options.report))
        except (TidewheelError, OSError) as exc:
            folder.note(f"the report is not written: {exc}")
            sys.stderr.write(f"tidewheel: {exc}\n")
