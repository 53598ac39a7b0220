"""Batch scoring from Python: what `tidewheel score` does, and reading what it wrote."""

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from streams.batch.records.progress import Manifest as Manifest  # exported
from streams.contract.errors import UsageError

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

    from streams.batch.jobs.job_folder import JobFolder

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
    from compose.cli.batch.submitting import submitted
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


def _stored(table: Any, job: "JobFolder") -> Path:
    """Keep a table in memory in a job's folder, unless there is a job already; return its file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from streams.runtime.disk import replacing

    path = job.folder / "table.parquet"
    if not job.submitted:
        with replacing(path) as file:
            pq.write_table(pa.table(table), file, row_group_size=ROWS_A_GROUP)
    return path
