"""Jobs are submitted: by `tidewheel score`, by the runner for a schedule, and from Python, where a
job's rows are read as well."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from compose.cli.arguments import registry_of, trusted_keys
from compose.launcher.state_dir import StateDir
from federation.registry.catalog import TEACHER, named
from streams.batch.jobs.job_folder import JobFolder, JobIndex, Models
from streams.batch.jobs.job_queue import Entry, JobQueue
from streams.batch.jobs.submission import folder_of, specify
from streams.batch.records.progress import Manifest
from streams.batch.records.specification import Settings, Specification
from streams.contract.artifact import challenger_header, files_of, unpack
from streams.contract.errors import ArtifactError, MalformedRecord, UsageError
from streams.contract.task import Task, load_task
from streams.runtime.failpoints import read_failpoint
from streams.runtime.trust import load_public_key

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

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
        job.submit(specification, models, read_failpoint(os.environ))
        JobIndex(settings.state).add(specification.id, job)
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


ROWS_A_GROUP = 100_000  # of a table in memory
KINDS = {".parquet": "parquet", ".jsonl": "json", ".csv": "csv"}


def score(task: str, source: Any, sink: str | Path, **options: Any) -> Manifest:
    """Score stored rows with one model version, as `tidewheel score` does; return the
    counts and the state of the job.

    `source` is a path, folder, glob, Delta table or URL, several of them, or a table in memory
    (pyarrow, pandas, Polars: whatever exports an Arrow stream). The options are those of the
    command, with `_` for `-`: model, id, columns, drop, keep, label_column, where, time, device,
    start (--from), until, rows (--as), output_format, table, max_errors, timeout, processes, job,
    state, registry, trust; lists may be Python's, times a number of seconds. A job that ends early
    is continued with `tidewheel jobs resume`. Raises UsageError for what cannot work, before
    anything is scored. Needs the extra `batch`.

    >>> from tidewheel import UsageError, score
    >>> try:
    ...     score("pumps.py:task", "lake/day=1", "scores", id="event")
    ... except UsageError as error:
    ...     print(error)
    task 'pumps.py:task': there is no file pumps.py
    """
    from streams.batch.jobs.job import Job
    from streams.batch.jobs.submission import folder_of
    from streams.batch.records.specification import Settings

    asked = {"task": task, "to": sink, **options}
    if hasattr(source, "__arrow_c_stream__"):
        source = _stored(source, folder_of(Settings.of({**asked, "inputs": []})))
    inputs = [str(source)] if isinstance(source, str | Path) else [str(one) for one in source]
    settings = Settings.of({**asked, "inputs": inputs})
    with submitted(settings) as (folder, loaded, lock):
        return Job(folder, loaded, lock=lock).run()


def read_output(output: str | Path) -> "Dataset":
    """Return the rows that a batch job wrote into a folder, a Delta table or under a URL, as a
    pyarrow dataset; nothing is read yet.

    Raises UsageError for what is none of these: a database is read with its own client.

    >>> from tidewheel import UsageError, read_output
    >>> try:
    ...     read_output("/nowhere").to_table()
    ... except UsageError as error:
    ...     print(error)
    /nowhere is no output of a batch job: a folder of Parquet, JSON Lines or CSV, or a Delta table
    """
    import pyarrow.dataset as ds
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    from streams.batch.sources.places import find, is_url, store_of

    place = str(output)
    if not is_url(place) and (Path(place) / "_delta_log").is_dir():
        from streams.batch.sinks.tables import dataset_of

        return dataset_of(place)
    found = [path for _, path in find(place, lambda name: PurePosixPath(name).match("part-*.*"))]
    for suffix, kind in KINDS.items():
        parts, files = [path for path in found if path.endswith(suffix)], None
        if parts and is_url(place):
            with store_of(place) as (store, _):
                parts = [store._strip_protocol(part) for part in parts]
                files = PyFileSystem(FSSpecHandler(store))
        if parts:
            return ds.dataset(parts, format=kind, filesystem=files)
    raise UsageError(
        f"{output} is no output of a batch job: a folder of Parquet, JSON Lines or CSV, or a Delta "
        "table"
    )


def _stored(table: Any, job: JobFolder) -> Path:
    """Keep a table in memory in a job's folder, unless there is a job already; return its file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from streams.runtime.files import replacing

    path = job.folder / "table.parquet"
    if not job.submitted:
        with replacing(path) as file:
            pq.write_table(pa.table(table), file, row_group_size=ROWS_A_GROUP)
    return path
