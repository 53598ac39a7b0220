"""Submitting a job: everything that can be wrong with it is said here, before any scoring."""

import hashlib
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from streams.batch.answering.models import check_models
from streams.batch.history.inputs import topic_inputs
from streams.batch.jobs.job_folder import JobFolder, now_us
from streams.batch.jobs.scoring import output_fields
from streams.batch.recordings.columns import as_read, one_sample, reading_columns
from streams.batch.records.documents import (
    FILES,
    Columns,
    Frozen,
    InputFormat,
    Named,
    Specification,
    TaskShape,
    Version,
)
from streams.batch.sinks.loading import open_sink
from streams.batch.sinks.targets import Target, target_of
from streams.batch.sources.inputs import Wanted, check_files, choose_columns, find_inputs
from streams.batch.sources.text_objects import MODEL_INPUT
from streams.batch.windows.keys import with_keys
from streams.contract.artifact import Artifact, personal_header
from streams.contract.errors import ArtifactError, UsageError
from streams.contract.task import Task
from streams.kafka.settings import BrokerSettings
from streams.learning.torch_device import CPU, CUDA, torch_device
from streams.runtime.disk import replacing

STDIN = "-"
COPIED_BYTES = 1_000_000
MAX_ERRORS = re.compile(r"(\d{1,15})|(\d{1,3}(?:\.\d+)?)%")


@dataclass(frozen=True)
class Request:
    """What `tidewheel score` is asked for; `reference` names the task absolutely, `stdin` is what
    the input `-` stands for, `weights` are those of a personal model, `teacher` answers beside the
    model, and `device` (auto, cpu or cuda) is where a teacher runs."""

    reference: str
    inputs: Sequence[str]
    output: str
    wanted: Wanted = field(default_factory=Wanted)
    rows: Literal["segments", "readings", "events"] = "segments"
    input_format: InputFormat | None = None
    output_format: str | None = None
    table: str = "scores"
    max_errors: str | None = None
    job: Path | None = None
    stdin: IO[bytes] | None = None
    weights: bytes | None = None
    teacher: Artifact | None = None
    device: str = CPU

    @property
    def target(self) -> Target:
        return target_of(self.output, self.output_format)

    @property
    def folder(self) -> JobFolder:
        """The job's folder: the one that is named, or the output's name with `.job`."""
        target = self.target
        return JobFolder((self.job or target.beside / f"{target.name}.job").absolute())


def specify(
    task: Task,
    artifact: Artifact,
    request: Request,
    broker: Callable[[], BrokerSettings] | None = None,
) -> Specification:
    """Check a request and return it as a specification; raise UsageError, and write nothing, if
    the job cannot work."""
    if request.folder.submitted:
        raise UsageError(
            f"{request.folder.folder} is a job already: tidewheel jobs resume "
            f"{request.folder.folder}, or name another folder with --job"
        )
    target = request.target
    if target.kind in FILES and target.local:
        _refuse_output(Path(target.place), request.output)
    if request.max_errors is not None:
        most_errors(request.max_errors, 0)
    device = _device(artifact, request)
    windowed = artifact.manifest.kind == "teacher" or request.teacher is not None
    frozen: Frozen | None = None
    kind: InputFormat
    if request.rows == "events":
        if request.inputs or request.input_format is not None:
            raise UsageError("--input-topic is read alone: make a job of the files")
        kind = "events"
        files, columns, frozen = topic_inputs(task, request.wanted, broker)
        _check_models(task, artifact, request, device)
    else:
        with _staged(request) as inputs:
            files, kind = find_inputs(inputs, request.input_format)
            columns = _columns(task, kind, files, request, windowed)
            _check_models(task, artifact, request, device)
    if STDIN in request.inputs:
        files = [file.model_copy(update={"name": STDIN}) for file in files]
    found = Specification(
        id=uuid.uuid4().hex[:12],
        created_us=now_us(),
        task=shape_of(task, request.reference),
        model=artifact.model + _personal(request.weights),
        digest=artifact.digest,
        kind="teacher" if artifact.manifest.kind == "teacher" else "model",
        weights=None if request.weights is None else hashlib.sha256(request.weights).hexdigest(),
        teacher=_version(request.teacher),
        device=device,
        inputs=files,
        input_format=kind,
        rows=request.rows,
        topic=frozen,
        columns=columns,
        output=target.place,
        output_format=target.kind,
        table=request.table,
        max_errors=request.max_errors,
    )
    if target.kind == "bedrock":
        found = _for_bedrock(found)
    sink = open_sink(found, broker)
    if sink is not None:
        sink.check(output_fields(task, found, files[0]))
    return found


def _device(artifact: Artifact, request: Request) -> Literal["cpu", "cuda"]:
    """Return where the job's teacher runs, for the job's whole life."""
    taught = artifact.manifest.kind == "teacher" or request.teacher is not None
    if request.device != CPU and not taught:
        raise UsageError(
            f"--teacher-device {request.device}: no teacher answers in this job, and models run on "
            "the CPU: leave it out, or add --teacher"
        )
    return "cuda" if torch_device(request.device, "--teacher-device") == CUDA else "cpu"


def _check_models(task: Task, artifact: Artifact, request: Request, device: str) -> None:
    try:
        check_models(task, artifact, request.weights, request.teacher, device)
    except ArtifactError as exc:
        raise UsageError(f"model {artifact.model} cannot be used: {exc}") from exc


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


def _version(artifact: Artifact | None) -> Version | None:
    return None if artifact is None else Version(model=artifact.model, digest=artifact.digest)


def _personal(weights: bytes | None) -> str:
    """Return what a device appends to the version's name, as `.p3`."""
    return "" if weights is None else f".p{personal_header(weights)[1]}"


def _columns(
    task: Task, kind: InputFormat, files: list[Named], request: Request, windowed: bool
) -> Columns:
    if request.wanted.device is not None and (request.rows == "readings" or not windowed):
        raise UsageError("--device is for segments that a teacher answers")
    if windowed and request.rows == "segments" and request.wanted.time is None:
        raise UsageError(
            "a teacher answers windows of a device: name --time and --device, or --as readings"
        )
    if request.rows == "readings":
        columns = reading_columns(task, kind, files, request.wanted)
        check_files(one_sample(task), kind, files, as_read(columns))
        return columns
    columns = choose_columns(task, kind, files, request.wanted)
    check_files(task, kind, files, with_keys(columns) if windowed else columns)
    return columns


@contextmanager
def _staged(request: Request) -> Iterator[Sequence[str]]:
    """Yield the inputs with a copy of standard input in the job's folder, which goes again if the
    job cannot work: a job that resumes cannot read it twice."""
    if STDIN not in request.inputs:
        yield request.inputs
        return
    if len(request.inputs) > 1 or request.stdin is None:
        raise UsageError("the input - is read alone: make a job of the others")
    if request.input_format is None:
        raise UsageError("the input - needs --input-format, as jsonl or csv")
    folder = request.folder
    copy = folder.stdin_copy(request.input_format)
    try:
        try:
            with replacing(copy) as file:
                shutil.copyfileobj(request.stdin, file, COPIED_BYTES)
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


def most_errors(text: str | None, total: int) -> int | None:
    """Return how many rows may have an error: a number, or a share of all rows; None: all."""
    if text is None:
        return None
    match = MAX_ERRORS.fullmatch(text)
    if match is None or (match[2] and float(match[2]) > 100):
        raise UsageError(f"--max-errors {text}: write a number of rows, or a share as 5%")
    return int(match[1]) if match[1] else int(total * float(match[2]) / 100)
