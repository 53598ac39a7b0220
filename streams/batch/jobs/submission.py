"""Submitting a job: everything that can be wrong with it is said here, before any scoring."""

import uuid
from pathlib import Path, PurePosixPath

from streams.batch.jobs.answers import output_fields
from streams.batch.jobs.job_folder import JobFolder, Models, now_us
from streams.batch.output_files import ObjectsSink, target_of
from streams.batch.sources.inputs import columns_of, find_inputs
from streams.batch.sources.text import MODEL_INPUT
from streams.batch.specification import (
    FILES,
    Settings,
    Specification,
    TaskShape,
)
from streams.contract.artifact import challenger_header
from streams.contract.errors import UsageError
from streams.contract.task import Task, absolute_reference
from streams.contract.task.extensions import PackageSink, Sink


def folder_of(settings: Settings) -> JobFolder:
    """Return the job's folder: the one that is named, or the output's name with `.job`."""
    target = target_of(settings.to, settings.output_format)
    return JobFolder((settings.job or target.beside / f"{target.name}.job").absolute())


def specify(task: Task, settings: Settings, models: Models) -> Specification:
    """Check what is asked for and return it as a specification; raise UsageError, and write
    nothing, if the job cannot work."""
    folder, target = folder_of(settings), target_of(settings.to, settings.output_format)
    if folder.submitted:
        raise UsageError(
            f"{folder.folder} is a job already: tidewheel jobs resume "
            f"{folder.folder}, or name another folder with --job"
        )
    if target.kind in FILES and target.local:
        _refuse_output(Path(target.place), settings.to)
    artifact = models.artifact
    files, kind = find_inputs(settings.inputs)
    teaches = artifact.manifest.kind == "teacher"
    columns = columns_of(task, kind, files, settings, teaches=teaches)
    weights = models.weights
    found = Specification(
        id=uuid.uuid4().hex[:12],
        created_us=now_us(),
        settings=settings,
        task=shape_of(task, absolute_reference(settings.task)),
        model=artifact.model if weights is None else challenger_header(weights)[1],
        digest=artifact.digest,
        kind="teacher" if teaches else "model",
        weights=models.weights_sum,
        inputs=files,
        input_format=kind,
        columns=columns,
        output=target.place,
        output_format=target.kind,
    )
    if target.kind == "bedrock":
        found = _for_bedrock(found)
    sink = open_sink(found)
    if sink is not None:
        sink.check(output_fields(task, found, files[0]))
    return found


def _refuse_output(folder: Path, name: str) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"the output {name} exists: name another one with --to")


def _for_bedrock(found: Specification) -> Specification:
    """Return a specification whose rows carry their input over, as Bedrock's output does."""
    if found.input_format != "bedrock":
        raise UsageError("--output-format bedrock needs Bedrock's lines as input: recordId, "
                         "modelInput")  # fmt: skip
    stems = [PurePosixPath(file.name).stem for file in found.inputs]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise UsageError(f"two inputs are named {twice}.jsonl, and their outputs would be one file")
    columns = found.columns.replace(keep=[*found.columns.keep, MODEL_INPUT])
    return found.replace(columns=columns)


def shape_of(task: Task, reference: str) -> TaskShape:
    return TaskShape(
        reference=reference,
        name=task.name,
        version=task.version,
        channels=list(task.channels),
        samples=task.segment.samples,
        outputs=list(task.classes or task.targets),
        threshold=task.threshold,
        tolerance=task.tolerance,
    )


def check_task(task: Task, specification: Specification) -> None:
    """Raise UsageError if the task is not the one that the job was submitted with."""
    before = specification.task
    if shape_of(task, before.reference) != before:
        raise UsageError(
            f"the task {before.reference} is not what it was when the job began "
            f"({before.name} version {before.version}): put it back, or start another job"
        )


def open_sink(specification: Specification) -> Sink | None:
    """Return the sink of a job, None where its files are the output. Nothing is opened yet."""
    kind, place, table = (
        specification.output_format,
        specification.output,
        specification.settings.table,
    )
    if specification.in_files:
        return None
    if kind in FILES:
        return ObjectsSink(place, kind)
    if kind == "own":
        return PackageSink(place, specification.id)
    if kind == "delta":
        from streams.batch.output_tables import DeltaSink

        return DeltaSink(place, specification.id)
    from streams.batch import output_tables

    kinds = {"duckdb": output_tables.DuckDbSink, "sqlite": output_tables.SqliteSink}
    return kinds.get(kind, output_tables.PostgresqlSink)(place, table, specification.id)
