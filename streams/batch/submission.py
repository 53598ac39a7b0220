"""Submitting a job: everything that can be wrong with it is said here, before any scoring."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streams.batch.documents import Specification, TaskShape
from streams.batch.inputs import check_files, choose_columns, find_files, format_of
from streams.batch.job_folder import JobFolder, now_us
from streams.contract.artifact import Artifact
from streams.contract.errors import ArtifactError, UsageError
from streams.contract.task import Task
from streams.learning.onnx_model import OnnxModel

MAX_ERRORS = re.compile(r"(\d{1,15})|(\d{1,3}(?:\.\d+)?)%")


@dataclass(frozen=True)
class Request:
    """What `tidewheel score` is asked for; `reference` names the task absolutely."""

    reference: str
    inputs: Sequence[str]
    output: Path
    columns: Sequence[str] = ()
    id: str | None = None
    label: str | None = None
    keep: Sequence[str] = ()
    max_errors: str | None = None
    job: Path | None = None

    @property
    def folder(self) -> JobFolder:
        """The job's folder: the one that is named, or the output's name with `.job`."""
        output = self.output.absolute()
        return JobFolder(self.job or output.with_name(f"{output.name}.job"))


def specify(task: Task, artifact: Artifact, request: Request) -> Specification:
    """Check a request and return it as a specification; raise UsageError, and write nothing, if
    the job cannot work."""
    if request.folder.submitted:
        raise UsageError(
            f"{request.folder.folder} is a job already: tidewheel jobs resume "
            f"{request.folder.folder}, or name another folder with --job"
        )
    if request.output.exists() and (not request.output.is_dir() or any(request.output.iterdir())):
        raise UsageError(f"the output {request.output} exists: name another one with --to")
    if request.max_errors is not None:
        most_errors(request.max_errors, 0)
    files = find_files(request.inputs)
    kind = format_of(files)
    columns = choose_columns(
        task, files, request.columns, request.id, request.label, list(dict.fromkeys(request.keep))
    )
    check_files(task, kind, files, columns)
    try:
        OnnxModel(task, artifact)
    except ArtifactError as exc:
        raise UsageError(f"model {artifact.model} cannot be used: {exc}") from exc
    return Specification(
        created_us=now_us(),
        task=shape_of(task, request.reference),
        model=artifact.model,
        digest=artifact.digest,
        inputs=files,
        input_format=kind,
        columns=columns,
        output=str(request.output.absolute()),
        output_format="jsonl" if request.output.suffix == ".jsonl" else "parquet",
        max_errors=request.max_errors,
    )


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


def most_errors(text: str | None, total: int) -> int | None:
    """Return how many rows may have an error: a number, or a share of all rows; None: all."""
    if text is None:
        return None
    match = MAX_ERRORS.fullmatch(text)
    if match is None or (match[2] and float(match[2]) > 100):
        raise UsageError(f"--max-errors {text}: write a number of rows, or a share as 5%")
    return int(match[1]) if match[1] else int(total * float(match[2]) / 100)
