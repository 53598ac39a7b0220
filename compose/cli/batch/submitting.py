"""Jobs are submitted: by `tidewheel score`, by the runner for a schedule, and from Python."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compose.cli.arguments import registry_of, trusted_keys
from compose.launcher.state_dir import StateDir
from federation.registry.catalog import TEACHER, named
from streams.batch.jobs.job_folder import JobFolder, JobIndex, Models
from streams.batch.jobs.job_queue import Entry, JobQueue
from streams.batch.jobs.submission import folder_of, specify
from streams.batch.specification import Settings, Specification
from streams.contract.artifact import challenger_header, files_of, unpack
from streams.contract.errors import ArtifactError, MalformedRecord, UsageError
from streams.contract.task import Task, load_task
from streams.runtime.failpoints import read_failpoint
from streams.runtime.trust import load_public_key

CHALLENGER = ".safetensors"  # suffix of what a device answers with in place of a version


def specified(settings: Settings) -> tuple[Task, Specification, Models]:
    """Check all that can be wrong with a job; raise UsageError if it cannot work. Nothing of it is
    written."""
    task = load_task(settings.task)
    models = model_of(task, settings)
    return task, specify(task, settings, models), models


@contextmanager
def submitted(settings: Settings, *, queued: bool = False) -> Iterator[tuple[JobFolder, Task, int]]:
    """Submit a job, into the queue first if it is `queued`: its first attempt would submit it too.
    Yield its folder, its task and the descriptor of its folder's lock."""
    task, specification, models = specified(settings)
    job = folder_of(settings)
    with job.locked() as lock:
        if job.submitted:
            raise UsageError(f"{job.folder} has become a job meanwhile: use another --job")
        if queued:
            JobQueue(settings.state).add(Entry(specification.id, str(job.folder), settings))
        else:
            JobIndex(settings.state).add(specification.id, job)
        job.submit(specification, models, read_failpoint(os.environ))
        yield job, task, lock


# --- the model -----------------------------------------------------------------------------------


def model_of(task: Task, settings: Settings) -> Models:
    """Return what --model names, verified: an artifact's file, a version of the registry, the
    served one, the best one by a metric, the teacher, or what a device answers with in place of a
    version. Raise UsageError if there is none."""
    layout, trust, name = StateDir(settings.state), settings.trust, settings.model
    if not trust and not layout.public_key.exists():
        raise UsageError(
            f"{layout.public_key} is missing, the key that signs models: run tidewheel prepare, "
            "name a --state, or a key with --trust and a file with --model"
        )
    keys = [load_public_key(key) for key in trusted_keys(layout, trust)]
    path, weights = Path(name), None
    try:
        if path.is_file() and path.suffix == CHALLENGER:
            weights = path.read_bytes()
            name, _, _ = challenger_header(weights)
        elif path.is_file():
            data = path.read_bytes()
            kind = TEACHER if files_of(data)[0].kind == TEACHER else "model"
            found = unpack(data, keys, task=task.name, task_version=task.version, kind=kind)
            return Models(found, data)
        elif path.suffix in (".twa", CHALLENGER):
            raise UsageError(f"--model {name}: there is no such file")
        registry = registry_of(task, settings.state, settings.registry, trust)
        return Models(*named(registry, task, name), weights)
    except (ArtifactError, MalformedRecord, OSError) as exc:
        raise UsageError(f"--model {name}: {exc}") from exc
