"""Batch scoring from Python: what `tidewheel score` does, and reading what it wrote."""

import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from streams.contract.errors import UsageError
from streams.contract.task import Task, load_task

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

    from federation.registry.named_model import NamedModel
    from streams.batch.jobs.submission import Stdin
    from streams.batch.records.settings import Settings

KINDS = {".parquet": "parquet", ".jsonl": "json", ".csv": "csv"}


@dataclass(frozen=True)
class Report:
    """The result of a batch job; `manifest` is all of `_manifest.json`.

    `state` is Completed, PartiallyCompleted or Failed, with a `reason`. `errors` counts rows by
    code. `drifted` is None where the drift is not decided.

    >>> from tidewheel import Report
    >>> Report("Completed", "", "scores.job", "scores", "1-abc", 3, 3, {}, None, None, {}).succeeded
    3
    """

    state: str
    reason: str
    job: str
    output: str
    model: str
    total: int
    succeeded: int
    errors: dict[str, int]
    accuracy: float | None
    drifted: bool | None
    manifest: dict[str, Any]


def score(task: str, source: Any, sink: str | Path, **options: Any) -> Report:
    """Score stored rows with one model version, as `tidewheel score` does; return the
    counts and the state of the job.

    `source` is a path, folder, glob, Delta table or URL, several of them, or a table in memory
    (pyarrow, pandas, Polars: whatever exports an Arrow stream). The options are those of the
    command, with `_` for `-`: model, teacher, id, columns, drop, keep, label_column, where, time,
    device, start (--from), until, rows (--as), output_format, table, max_errors, timeout,
    processes, job, state, registry, trust; lists may be Python's, times a number of seconds. A job
    that ends early is continued with `tidewheel jobs resume`. Raises UsageError for what cannot
    work, before anything is scored. Needs the extra `batch`.

    >>> from tidewheel import UsageError, score
    >>> try:
    ...     score("pumps.py:task", "lake/day=1", "scores", id="event")
    ... except UsageError as error:
    ...     print(error)
    task 'pumps.py:task': there is no file pumps.py
    """
    from streams.batch.jobs.job import Job, submit
    from streams.batch.jobs.job_folder import Models
    from streams.batch.jobs.job_index import JobIndex
    from streams.batch.jobs.submission import folder_of, specify
    from streams.batch.records.settings import Settings
    from streams.runtime.failpoints import unarmed

    loaded = load_task(task)
    inputs, stdin = _inputs(source)
    settings = Settings.of({"task": task, "inputs": inputs, "to": sink, **options})
    named = _model(loaded, settings, settings.model)
    models = Models(named.artifact, named.data, named.weights)
    if settings.teacher is not None:
        beside = _model(loaded, settings, settings.teacher)
        models = Models(*models[:3], beside.artifact, beside.data)
    specification = specify(loaded, settings, models, stdin)
    folder = folder_of(settings)
    with folder.locked() as lock:
        submit(folder, specification, models, unarmed)
        JobIndex(settings.state).add(specification.id, folder)
        found = Job(folder, loaded, lock=lock).run()
    drift = None if found.drift is None else found.drift.inputs_and_answers
    return Report(
        state=found.state,
        reason=found.reason,
        job=found.job,
        output=found.output,
        model=found.model,
        total=found.total,
        succeeded=found.succeeded,
        errors=found.errors,
        accuracy=found.correct / found.labelled if found.labelled else None,
        drifted=drift.alarm if drift is not None and drift.decided else None,
        manifest=found.model_dump(),
    )


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
        from streams.batch.sinks.delta import dataset_of

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


def _inputs(source: Any) -> "tuple[list[str], Stdin | None]":
    """Return the names of inputs, or a table in memory as an Arrow file."""
    if isinstance(source, str | Path):
        return [str(source)], None
    if hasattr(source, "__arrow_c_stream__"):
        import pyarrow as pa

        from streams.batch.jobs.submission import Stdin

        table, file = pa.table(source), io.BytesIO()
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        file.seek(0)
        return ["-"], Stdin(file, "arrow")
    return [str(one) for one in source], None


def _model(task: Task, settings: "Settings", name: str) -> "NamedModel":
    from federation.registry.named_model import named_model
    from federation.registry.registry import Registry
    from streams.runtime.key_files import load_public_key

    own = settings.state / "keys" / "signing.pub"
    if not settings.trust and not own.exists():
        raise UsageError(
            f"{own} is missing, the key that signs models: name a state folder, or trust keys"
        )
    keys = [load_public_key(path) for path in settings.trust or [own]]
    place = settings.registry or settings.state / "registry"
    return named_model(
        task, name, lambda: keys, lambda: Registry(place, task.name, task.version, keys)
    )
