"""Submitting a job: everything that can be wrong with it is said here, before any scoring."""

import hashlib
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from streams.batch.jobs.answers import output_fields
from streams.batch.jobs.job_folder import JobFolder, Models, now_us
from streams.batch.jobs.scoring import load_teacher
from streams.batch.records.specification import (
    FILES,
    Settings,
    Specification,
    TaskShape,
)
from streams.batch.sinks.output import open_sink, target_of
from streams.batch.sources.inputs import columns_of, find_inputs
from streams.batch.sources.text import MODEL_INPUT
from streams.contract.artifact import challenger_header
from streams.contract.errors import ArtifactError, UsageError
from streams.contract.task import Task, absolute_reference
from streams.learning.onnx_model import OnnxModel
from streams.runtime.disk import replacing

STDIN = "-"
COPIED_BYTES = 1_000_000


class Stdin(NamedTuple):
    """What the input `-` stands for, and the suffix of its format."""

    stream: IO[bytes]
    suffix: str = "jsonl"


def folder_of(settings: Settings) -> JobFolder:
    """Return the job's folder: the one that is named, or the output's name with `.job`."""
    target = target_of(settings.to, settings.output_format)
    return JobFolder((settings.job or target.beside / f"{target.name}.job").absolute())


def specify(
    task: Task, settings: Settings, models: Models, stdin: Stdin | None = None
) -> Specification:
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
    with _staged(settings, folder, stdin) as inputs:
        files, kind = find_inputs(inputs)
        teaches = artifact.manifest.kind == "teacher"
        columns = columns_of(task, kind, files, settings, teaches=teaches)
        try:
            if teaches:
                load_teacher(task, artifact)
            else:
                OnnxModel(task, artifact, models.weights)
        except ArtifactError as exc:
            raise UsageError(f"model {artifact.model} cannot be used: {exc}") from exc
    if STDIN in settings.inputs:
        files = [file.model_copy(update={"name": STDIN}) for file in files]
    weights = models.weights
    found = Specification(
        id=uuid.uuid4().hex[:12],
        created_us=now_us(),
        settings=settings,
        task=shape_of(task, absolute_reference(settings.task)),
        model=artifact.model if weights is None else challenger_header(weights)[1],
        digest=artifact.digest,
        kind="teacher" if teaches else "model",
        weights=None if weights is None else hashlib.sha256(weights).hexdigest(),
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
    columns = found.columns.model_copy(update={"keep": [*found.columns.keep, MODEL_INPUT]})
    return found.model_copy(update={"columns": columns})


@contextmanager
def _staged(settings: Settings, folder: JobFolder, stdin: Stdin | None) -> Iterator[Sequence[str]]:
    """Yield the inputs with a copy of standard input in the job's folder, which goes again if the
    job cannot work: a job that resumes cannot read it twice."""
    if STDIN not in settings.inputs:
        yield settings.inputs
        return
    if len(settings.inputs) > 1 or stdin is None:
        raise UsageError("the input - is read alone: make a job of the others")
    copy = folder.folder / f"stdin.{stdin.suffix}"
    try:
        try:
            with replacing(copy) as file:
                shutil.copyfileobj(stdin.stream, file, COPIED_BYTES)
        except OSError as exc:
            raise UsageError(f"the input - cannot be kept in {folder.folder}: {exc}") from exc
        yield [str(copy)]
    except BaseException:
        copy.unlink(missing_ok=True)
        with suppress(OSError):  # a folder that others use stays
            folder.folder.rmdir()
        raise


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
