"""One shard scored into its output file, in whatever process.

A device answers one segment at a time. Larger batches are faster up to the size of the processor's
cache; one is taken only if it gives the same bits as single segments.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from streams.batch.jobs.answers import Answering, Model, Watch, output_schema, reference_of
from streams.batch.jobs.job_folder import JobFolder
from streams.batch.records.progress import Counts
from streams.batch.records.rows import Rows, Taught
from streams.batch.records.specification import Named, Plan, PlannedFile, Specification
from streams.batch.sinks.files import writing
from streams.batch.sources.inputs import kept_fields
from streams.batch.sources.plan import Sources
from streams.batch.sources.readings import FIELDS
from streams.batch.sources.text import MAX_LINE_BYTES
from streams.batch.sources.windows import ShardRows
from streams.contract.artifact import Artifact, digest_of, files_of
from streams.contract.errors import ArtifactError, TidewheelError, UsageError
from streams.contract.task import Task
from streams.drift.reference import Reference
from streams.learning.onnx_model import OnnxModel

if TYPE_CHECKING:
    from streams.learning.teacher import Teacher


class Loaded(NamedTuple):
    """What answers segments, None for a teacher; the teacher; and the drift reference."""

    run: Model | None
    teacher: "Teacher | None"
    reference: Reference | None


def artifact_of(folder: JobFolder, specification: Specification) -> Artifact:
    """Return the job's artifact; it was verified when the job was submitted."""
    return _stored(folder.model, specification.digest)


def _stored(path: Path, digest: str) -> Artifact:
    try:
        data = path.read_bytes()
        found = digest_of(data)
        if found != digest:
            raise ArtifactError("digest", "it is not the artifact of the specification")
        manifest, files = files_of(data)
    except OSError as exc:
        raise UsageError(f"the job's model {path} is gone: {exc}") from exc
    except ArtifactError as exc:
        raise UsageError(f"the job's model {path}: {exc}") from exc
    return Artifact(manifest, found, files, len(data))


def _weights(folder: JobFolder, specification: Specification) -> bytes | None:
    """Return the weights of a personal model; they were checked when the job was submitted."""
    if specification.weights is None:
        return None
    try:
        data = folder.weights.read_bytes()
    except OSError as exc:
        raise UsageError(f"the job's model {folder.weights} is gone: {exc}") from exc
    if hashlib.sha256(data).hexdigest() != specification.weights:
        raise UsageError(f"the job's model {folder.weights}: it is not that of the specification")
    return data


def load_models(folder: JobFolder, specification: Specification, task: Task) -> Loaded:
    """Return the job's models and the reference of the first."""
    artifact = artifact_of(folder, specification)
    run: Model | None = None
    teacher: Teacher | None = None
    try:
        if specification.kind == "teacher":
            teacher = load_teacher(task, artifact)
        else:
            run = OnnxModel(task, artifact, _weights(folder, specification)).run
        if specification.teacher is not None:
            other = _stored(folder.teacher, specification.teacher.digest)
            teacher = load_teacher(task, other)
        return Loaded(run, teacher, reference_of(artifact))
    except ArtifactError as exc:
        raise UsageError(f"the job's model {folder.model}: {exc}") from exc


def output_fields(task: Task, specification: Specification, file: PlannedFile | Named) -> pa.Schema:
    """Return all columns of the output, with those that come from the input."""
    columns = specification.columns
    kept = kept_fields(specification.input_format, file, columns)
    own = FIELDS if specification.settings.rows == "readings" else []
    named = [pa.field(name, kind) for name, kind in own]
    beside = specification.teacher is not None
    return pa.schema([*output_schema(task, columns, teacher=beside), *named, *kept])


class ShardScorer:
    """Scores shards of one job with its model."""

    def __init__(
        self,
        folder: JobFolder,
        specification: Specification,
        task: Task,
        max_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        """Load the model; raise UsageError if it cannot be used."""
        self.specification, self._task, self.max_bytes = specification, task, max_bytes
        self._reading = ShardRows(folder.folder, specification, task, max_bytes)
        self._run, self._teacher, self.reference = load_models(folder, specification, task)
        self._watch = Watch(task, self.reference)

    @cached_property
    def batch(self) -> int:
        """How many segments the model answers at once, measured when it is first asked for."""
        return 1 if self._run is None else fastest_batch(self._task, self._run)

    def score(
        self, plan: Plan, number: int, sources: Sources, part: Path, between: Callable[[], None]
    ) -> Counts:
        """Write the rows of a shard to `part`, which is replaced as a whole; `between` is called
        between two batches. Raise TidewheelError if its file is not what it was."""
        specification, shard = self.specification, plan.shards[number]
        file = plan.files[shard.file]
        sources.check(shard.file)
        answering = self._answering(file)
        counts = Counts()
        whole = output_fields(self._task, specification, file)
        with writing(part, specification.output_format, whole) as write:
            for rows, taught in self._rows(plan, number, between):
                between()
                table, found = answering.answer(rows, taught)
                write(table, rows)
                counts = counts.plus(found)
            sources.check(shard.file)
            if counts.read != shard.rows or counts.readings != shard.readings:
                raise TidewheelError(
                    f"{file.name} gave {counts.read} of {shard.rows} rows of a shard"
                )
        return counts

    def _answering(self, file: PlannedFile) -> Answering:
        beside = self.specification.teacher
        return Answering(
            self._task,
            self.specification.model,
            self._run,
            output_schema(self._task, self.specification.columns, teacher=beside is not None),
            file.name,
            self._watch,
            self.batch,
            None if beside is None else beside.model,
        )

    def _rows(
        self, plan: Plan, number: int, between: Callable[[], None]
    ) -> Iterator[tuple[Rows, Taught | None]]:
        if self._teacher is not None:
            yield from self._reading.taught(plan, number, self._teacher, between)
            return
        for rows in self._reading.rows(plan, number):
            yield rows, None


KINDS = ("model", "teacher")  # of artifacts


def load_teacher(task: Task, artifact: Artifact) -> "Teacher":
    """Return a teacher that scores each window in a forward pass of its own, on one thread of the
    CPU; raise ArtifactError if it does not fit the task."""
    try:
        from streams.learning.teacher import pin_threads, teacher_of
    except ImportError as exc:
        raise ArtifactError("not-runnable", f"a teacher needs torch: {exc}") from exc
    pin_threads()
    return teacher_of(task, artifact, artifact.model, rows_per_call=1)


def check_models(
    task: Task,
    artifact: Artifact,
    weights: bytes | None,
    teacher: Artifact | None,
) -> None:
    """Raise ArtifactError or UsageError if a model of a job cannot answer; `weights` are those of a
    personal model."""
    if teacher is not None and {artifact.manifest.kind, teacher.manifest.kind} != set(KINDS):
        raise UsageError("--teacher is a teacher's artifact, beside a model that is none")
    if artifact.manifest.kind == "teacher":
        load_teacher(task, artifact)
    else:
        OnnxModel(task, artifact, weights)
    if teacher is not None:
        load_teacher(task, teacher)


SIZES = (1, 4, 16, 64, 256, 1024)
TRIED = 1024  # segments that the largest batch is tried with
ENOUGH_S = 0.05  # of one size: a slow model is not measured for long

Run = Callable[[np.ndarray], np.ndarray]


def fastest_batch(task: Task, run: Run, clock: Callable[[], float] = time.perf_counter) -> int:
    """Return the batch size with the most segments a second whose answers have the bits of single
    ones."""
    noise = np.random.default_rng(0)
    segments = noise.normal(size=(TRIED, *task.segment_shape)).astype(np.float32)
    alone = np.zeros((0, task.outputs), np.float32)
    best, rate = 1, 0.0
    for size in SIZES:
        answers: list[np.ndarray] = []
        begun, done = clock(), 0
        while done < TRIED and (not answers or clock() - begun < ENOUGH_S):
            answers.append(run(segments[done : done + size]))
            done += size
        found = done / max(clock() - begun, 1e-9)
        together = np.concatenate(answers)
        if size == 1:
            alone = together
        if together[: len(alone)].tobytes() != alone[: len(together)].tobytes():
            break
        if found > rate:
            best, rate = size, found
    return best
