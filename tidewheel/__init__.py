"""Tidewheel: devices that infer on their own sensor streams and learn in federated rounds.

This package is all that is public. Everything else in the distribution (`streams`, `federation`,
`edge_client`, `compose`) is private and may change in any version.

A task is one Python file with one `Task`, named `path/to/file.py:task` on every command line:

    from tidewheel import Device, Reading, Segment, Task

    task = Task(
        name="pumps", version=1, channels=("x", "y"), rate_hz=100,
        segment=Segment(samples=200, hop=100), classes=("idle", "running", "failing"),
        build_model=build_model, readings=readings, devices=devices,
    )

    $ tidewheel up pumps.py:task --devices 4

Describe what is learned
    Task        the whole description, with Segment, Device and Training (and its
                Privacy)
    Category    a channel of names; Time: one that follows from the event's time
    Reading     what `Task.readings` yields: one sensor sample; Readings: many as arrays
    Answered    what `Task.outcomes` gets: a segment as the device answered it
    Outcome     what `Task.outcomes` yields: a true label that is known later
    Metric      a figure of merit of your own, for `Task.metric`
    OnnxFile    a graph that was trained elsewhere, for `Task.build_model` and `build_teacher`
    Tumbling    windows of a fixed length; also Session, Count, Sliding, and Window: what all of
                them are, for one of your own
    Before      what a Window knows of the one before

Add code of your own, in a task file or by a package's entry points
    Strategy        how updates become one model (Move: one device's update)
    MetricFunction  how good outputs are
    Source          where readings come from
    Sink            what a batch job's rows are loaded into

Read and write what flows
    read_scores     the store of scored events as a pyarrow Dataset
    EventBatch      consecutive events of one device, in the columns of `event_schema`
    Drop            a device's declaration that it dropped events
    LabelBatch      labels of a device that became known after their events
    encode_events   an EventBatch as a Kafka message of the topic `<task>.events`
    decode_events   the way back, with full validation
    load_task       a Task from `path/to/file.py:task`

Score what is stored
    score           a batch job, as `tidewheel score` runs it
    Manifest        its result
    read_output     its rows as a pyarrow Dataset

Errors
    TidewheelError, of which TaskError, UsageError, MalformedRecord and BrokerUnavailable are the
    ones that callers meet. The text of each is one line: what, where, what to do.
"""

from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

    from streams.batch.jobs.job_folder import JobFolder
    from streams.batch.progress import Manifest
    from streams.contract.errors import (
        BrokerUnavailable,
        MalformedRecord,
        TaskError,
        TidewheelError,
        UsageError,
    )
    from streams.contract.events.labels import LabelBatch
    from streams.contract.events.messages import Drop
    from streams.contract.events.records import EventBatch, encode_events, event_schema
    from streams.contract.events.records import decode_event_message as decode_events
    from streams.contract.task import (
        Answered,
        Before,
        Category,
        Count,
        Device,
        Metric,
        OnnxFile,
        Outcome,
        Privacy,
        Reading,
        Readings,
        Segment,
        Session,
        Sliding,
        Task,
        Time,
        Training,
        Tumbling,
        Window,
        load_task,
    )
    from streams.contract.task.extensions import MetricFunction, Move, Sink, Source, Strategy

__all__ = [
    "Answered",
    "Before",
    "BrokerUnavailable",
    "Category",
    "Count",
    "Device",
    "Drop",
    "EventBatch",
    "LabelBatch",
    "MalformedRecord",
    "Manifest",
    "Metric",
    "MetricFunction",
    "Move",
    "OnnxFile",
    "Outcome",
    "Privacy",
    "Reading",
    "Readings",
    "Segment",
    "Session",
    "Sink",
    "Sliding",
    "Source",
    "Strategy",
    "Task",
    "TaskError",
    "TidewheelError",
    "Time",
    "Training",
    "Tumbling",
    "UsageError",
    "Window",
    "decode_events",
    "encode_events",
    "event_schema",
    "load_task",
    "read_output",
    "read_scores",
    "score",
]

# Where each name is: the module is imported with the first use of one of its names.
_RECORDS = "streams.contract.events.records"
_PLACES = {
    **dict.fromkeys(
        ("BrokerUnavailable", "MalformedRecord", "TaskError", "TidewheelError", "UsageError"),
        "streams.contract.errors",
    ),
    "Drop": "streams.contract.events.messages",
    "LabelBatch": "streams.contract.events.labels",
    **dict.fromkeys(
        ("MetricFunction", "Move", "Sink", "Source", "Strategy"), "streams.contract.task.extensions"
    ),
    **dict.fromkeys(("EventBatch", "decode_events", "encode_events", "event_schema"), _RECORDS),
    "Manifest": "streams.batch.progress",
}
_RENAMED = {"decode_events": "decode_event_message"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_PLACES.get(name, "streams.contract.task"))
    found = globals()[name] = getattr(module, _RENAMED.get(name, name))
    return found


def __dir__() -> list[str]:
    return __all__


def read_scores(state: str | Path = ".tidewheel") -> "Dataset":
    """Return the scored events of a state folder as a dataset; nothing is read yet.

    One row an event: `device`, `epoch`, `seq` (unique together), `time` and `window` (timestamps in
    microseconds, UTC), `model` and `outputs` (the device's answer), `teacher_model` and `teacher`
    (the larger model's answer), `label`, `agrees`, `correct`. Only committed rows are in it: the
    dataset is a snapshot of the Delta table. Raises UsageError where there is no store. Needs the
    extra `worker`.

    >>> from tidewheel import UsageError, read_scores
    >>> try:
    ...     read_scores("/nowhere").to_table(columns=["device", "time"]).num_rows
    ... except UsageError as error:
    ...     print(error)
    /nowhere/store is not a store: it has no Delta table scores
    """
    from streams.worker.store.query import dataset

    return dataset(Path(state) / "store")


# --- batch scoring ------------------------------------------------------------------------------

ROWS_A_GROUP = 100_000  # of a table in memory
KINDS = {".parquet": "parquet", ".jsonl": "json", ".csv": "csv"}


def score(task: str, source: Any, sink: str | Path, **options: Any) -> "Manifest":
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
    from streams.batch.specification import Settings

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

    Raises UsageError for anything else: a database is read with its own client.

    >>> from tidewheel import UsageError, read_output
    >>> try:
    ...     read_output("/nowhere").to_table()
    ... except UsageError as error:
    ...     print(error)
    /nowhere has no output of a batch job: Parquet, JSON Lines or CSV in a folder, or a Delta table
    """
    import pyarrow.dataset as ds

    from streams.batch.sources.places import find, is_url
    from streams.contract.errors import UsageError
    from streams.runtime.files import arrow_files

    place = str(output)
    if not is_url(place) and (Path(place) / "_delta_log").is_dir():
        from streams.batch.output_tables import dataset_of

        return dataset_of(place)
    found = [path for _, path in find(place, lambda name: PurePosixPath(name).match("part-*.*"))]
    for suffix, kind in KINDS.items():
        parts, files = [path for path in found if path.endswith(suffix)], None
        if parts and is_url(place):
            parts = [part.removeprefix(place.rstrip("/") + "/") for part in parts]
            files = arrow_files(place)
        if parts:
            return ds.dataset(parts, format=kind, filesystem=files)
    raise UsageError(
        f"{output} has no output of a batch job: Parquet, JSON Lines or CSV in a folder, or a "
        "Delta table"
    )


def _stored(table: Any, job: "JobFolder") -> Path:
    """Keep a table in memory in a job's folder, unless there is a job already; return its file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from streams.runtime.files import replacing

    path = job.folder / "table.parquet"
    if not job.submitted:
        with replacing(path) as file:
            pq.write_table(pa.table(table), file, row_group_size=ROWS_A_GROUP)
    return path
