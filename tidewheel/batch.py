"""Batch scoring from Python: what `tidewheel score` does, and reading what it wrote."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from streams.contract.errors import UsageError
from streams.contract.task import Task, absolute_reference, load_task

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

    from federation.registry.named_model import NamedModel
    from streams.batch.records.documents import InputFormat

KINDS = {".parquet": "parquet", ".jsonl": "json", ".csv": "csv"}


@dataclass(frozen=True)
class Report:
    """What became of a batch job; `manifest` is all of `_manifest.json`.

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


def score(
    task: str,
    source: Any,
    sink: str | Path,
    *,
    model: str | Path = "served",
    teacher: str | Path | None = None,
    state: str | Path = ".tidewheel",
    trust: Sequence[str | Path] = (),
    rows: Literal["segments", "readings"] = "segments",
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
    id: str | None = None,
    label_column: str | None = None,
    keep: Sequence[str] = (),
    where: str | None = None,
    device: str | None = None,
    time: str | None = None,
    start: str | None = None,
    until: str | None = None,
    input_format: str | None = None,
    output_format: str | None = None,
    table: str = "scores",
    max_errors: str | None = None,
    timeout_s: float | None = None,
    processes: int | None = None,
    job: str | Path | None = None,
    teacher_device: Literal["auto", "cpu", "cuda"] = "cpu",
    report: str | Path | None = None,
) -> Report:
    """Score stored rows with one model version, as `tidewheel score` does; return what became of
    them.

    `source` is a path, folder, glob, Delta table or URL, several of them, or a table in memory
    (pyarrow, pandas, Polars: whatever exports an Arrow stream). `model` is an artifact's file, a
    version, "teacher", "served", the one of the registry in `state`, or "best:METRIC"; `teacher`
    adds the answers of a teacher; `trust` are the public keys, by default the state folder's. The
    other options are those of the command. A job that ends early is continued with `tidewheel jobs
    resume`. Raises UsageError for what cannot work, before anything is scored. Needs the extra
    `batch`.

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
    from streams.batch.jobs.submission import Request, specify
    from streams.batch.report.page import write_report
    from streams.batch.report.plots import need_matplotlib
    from streams.batch.sources.inputs import Wanted
    from streams.kafka.settings import BrokerSettings
    from streams.runtime.failpoints import unarmed

    loaded = load_task(task)
    if report is not None:
        need_matplotlib()
    named = _model(loaded, str(model), Path(state), trust)
    beside = None if teacher is None else _model(loaded, str(teacher), Path(state), trust)
    inputs, stdin = _inputs(source)
    request = Request(
        reference=absolute_reference(task),
        inputs=inputs,
        output=str(sink),
        wanted=Wanted(columns, drop, id, label_column, keep, where, time, start, until, device),
        rows=rows,
        input_format=_format(input_format) if stdin is None else "arrow",
        output_format=output_format,
        table=table,
        max_errors=max_errors,
        job=None if job is None else Path(job),
        stdin=stdin,
        weights=named.weights,
        teacher=None if beside is None else beside.artifact,
        device=teacher_device,
    )
    models = Models(named.data, None if beside is None else beside.data, named.weights)
    broker = partial(BrokerSettings)
    specification = specify(loaded, named.artifact, request, broker)
    folder = request.folder
    with folder.locked() as lock:
        submit(folder, specification, models, unarmed)
        JobIndex(Path(state)).add(specification.id, folder)
        running = Job(
            folder, loaded, timeout_s=timeout_s, processes=processes, broker=broker, lock=lock
        )
        found = running.run()
    if report is not None:
        write_report(folder, Path(report))
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

    from streams.batch.sources.places import is_url

    if is_url(str(output)):
        return _objects(str(output))
    folder = Path(output)
    if (folder / "_delta_log").is_dir():
        from streams.batch.sinks.delta_sink import dataset_of

        return dataset_of(str(folder))
    for suffix, kind in KINDS.items():
        if parts := sorted(folder.glob(f"part-*{suffix}")):
            return ds.dataset([str(part) for part in parts], format=kind)
    raise _no_output(output)


def _objects(url: str) -> "Dataset":
    import pyarrow.dataset as ds
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    from streams.batch.sources.places import find, opened

    found = [path for _, path in find(url, lambda name: PurePosixPath(name).match("part-*.*"))]
    for suffix, kind in KINDS.items():
        if parts := [opened(path) for path in found if path.endswith(suffix)]:
            files = PyFileSystem(FSSpecHandler(parts[0][0]))
            return ds.dataset([inside for _, inside in parts], format=kind, filesystem=files)
    raise _no_output(url)


def _no_output(output: str | Path) -> UsageError:
    return UsageError(
        f"{output} is no output of a batch job: a folder of Parquet, JSON Lines or CSV, or a Delta "
        "table"
    )


def _inputs(source: Any) -> tuple[list[str], io.BytesIO | None]:
    """Return the names of inputs, or a table in memory as an Arrow file."""
    if isinstance(source, str | Path):
        return [str(source)], None
    if hasattr(source, "__arrow_c_stream__"):
        import pyarrow as pa

        table, file = pa.table(source), io.BytesIO()
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        file.seek(0)
        return ["-"], file
    return [str(one) for one in source], None


def _model(task: Task, name: str, state: Path, trust: Sequence[str | Path]) -> "NamedModel":
    from federation.registry.named_model import named_model
    from federation.registry.registry import Registry
    from streams.runtime.key_files import load_public_key

    own = state / "keys" / "signing.pub"
    paths = [Path(path) for path in trust] or [own]
    if not trust and not own.exists():
        raise UsageError(
            f"{own} is missing, the key that signs models: name a state folder, or trust keys"
        )
    keys = [load_public_key(path) for path in paths]
    place = state / "registry"
    return named_model(
        task, name, lambda: keys, lambda: Registry(place, task.name, task.version, keys)
    )


def _format(name: str | None) -> "InputFormat | None":
    from streams.batch.records.documents import input_format

    return input_format(name)
