"""Jobs are submitted, put into the queue, and taken from it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from compose.cli.arguments import registry_of, trusted_keys
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import print_json, say
from streams.batch.jobs.job import submit
from streams.batch.jobs.job_folder import Held, JobFolder, Models, now_us
from streams.batch.jobs.job_index import JobIndex
from streams.batch.jobs.submission import Stdin, folder_of, specify
from streams.batch.queue.job_queue import Entry, JobQueue
from streams.batch.records.documents import Specification
from streams.batch.records.settings import Settings
from streams.contract.errors import UsageError
from streams.contract.task import Task, load_task
from streams.runtime.failpoints import read_failpoint
from streams.runtime.key_files import load_public_key

if TYPE_CHECKING:
    from federation.registry.named_model import NamedModel


def specified(settings: Settings, stdin: Stdin | None = None) -> tuple[Task, Specification, Models]:
    """Check all that can be wrong with a job; raise UsageError if it cannot work. Nothing of it is
    written."""
    task = load_task(settings.task)
    named = _model(task, settings, settings.model, "--model")
    models = Models(named.artifact, named.data, named.weights)
    if settings.teacher is not None:
        beside = _model(task, settings, settings.teacher, "--teacher")
        models = Models(*models[:3], beside.artifact, beside.data)
    return task, specify(task, settings, models, stdin), models


def _model(task: Task, settings: Settings, name: str, option: str) -> "NamedModel":
    """Return the model that `option` names, verified."""
    from federation.registry.named_model import named_model

    layout, trust = StateDir(settings.state), settings.trust
    if not trust and not layout.public_key.exists():
        raise UsageError(
            f"{layout.public_key} is missing, the key that signs models: run tidewheel prepare, "
            "name a --state, or a key with --trust and a file with --model"
        )
    return named_model(
        task,
        name,
        lambda: [load_public_key(key) for key in trusted_keys(layout, trust)],
        lambda: registry_of(task, settings.state, settings.registry),
        option,
    )


@contextmanager
def submitted(settings: Settings, *, queued: bool = False) -> Iterator[tuple[JobFolder, Task, int]]:
    """Submit a job, into the queue first if it is `queued`: its first attempt would submit it too.
    Yield its folder, its task and the descriptor of its folder's lock."""
    task, specification, models = specified(settings, Stdin(sys.stdin.buffer))
    job = folder_of(settings)
    with job.locked() as lock:
        if job.submitted:
            raise UsageError(f"{job.folder} has become a job meanwhile: use another --job")
        if queued:
            after = settings.expires_after
            expires_us = None if after is None else now_us() + int(after * 1e6)
            entry = Entry(specification.id, str(job.folder), settings, expires_us=expires_us)
            JobQueue(settings.state).add(entry)
        submit(job, specification, models, read_failpoint(os.environ))
        JobIndex(settings.state).add(specification.id, job)
        yield job, task, lock


def enqueue(settings: Settings, json: bool) -> None:
    """Queue a job, and print its id."""
    with submitted(settings, queued=True) as (job, _, _):
        identity = job.specification().id
        job.write_state("Scheduled")
    if json:
        print_json({"id": identity, "job": str(job.folder), "state": "Scheduled"})
    else:
        say(identity)


def enqueue_again(state: Path, job: JobFolder, settings: Settings) -> str:
    """Queue a job that was submitted before; return its id."""
    identity = job.specification().id
    with job.locked():
        if job.state().state == "Completed":
            raise UsageError(f"{job.folder} is Completed: there is nothing to resume")
        job.request_stop(False)
        JobQueue(state).add(Entry(identity, str(job.folder), settings))
        JobIndex(state).add(identity, job)
        job.write_state("Scheduled")
    return identity


def stop_queued(state: Path, name: str) -> str | None:
    """Stop a queued job, named by its id or its folder; return what to say, None if it is not in
    the queue."""
    queue, named = JobQueue(state), str(Path(name).absolute())
    entry = next((e for e in queue.entries() if named == e.folder or name == e.id), None)
    if entry is None:
        return None
    entry.job.request_stop(True)  # seen by the process that works on it, or begins now
    try:
        with entry.job.locked():
            if entry.job.submitted:
                entry.job.write_state("Stopped")
            queue.finish(entry.id, "Stopped")
            return f"{entry.id} is taken from the queue"
    except Held:
        return f"{entry.folder} stops after its current shards"
