"""One shard scored into its output file, in whatever process.

A device answers one segment at a time. A batch is faster, and is taken only if it gives the same
bits as single segments.
"""

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np

from streams.batch.jobs.answers import Answering, Model, output_fields, reference_of
from streams.batch.jobs.job_folder import JobFolder
from streams.batch.records.progress import Counts
from streams.batch.records.specification import Plan, Specification
from streams.batch.sinks.files import writing
from streams.batch.sources.plan import Sources
from streams.batch.sources.readings import rows_of
from streams.contract.artifact import Artifact, digest_of, files_of
from streams.contract.errors import ArtifactError, TidewheelError, UsageError
from streams.contract.task import Task
from streams.learning.onnx_model import OnnxModel


def artifact_of(folder: JobFolder, specification: Specification) -> Artifact:
    """Return the job's artifact; it was verified when the job was submitted."""
    path = folder.model
    try:
        data = path.read_bytes()
        found = digest_of(data)
        if found != specification.digest:
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


class ShardScorer:
    """Scores shards of one job with its model."""

    def __init__(self, folder: JobFolder, specification: Specification, task: Task) -> None:
        """Load the model; raise UsageError if it cannot be used."""
        self.specification, self._task = specification, task
        self._folder, artifact = folder.folder, artifact_of(folder, specification)
        try:
            self._run = OnnxModel(task, artifact, _weights(folder, specification)).run
            self.reference = reference_of(artifact)
        except ArtifactError as exc:
            raise UsageError(f"the job's model {folder.model}: {exc}") from exc

    @cached_property
    def batch(self) -> int:
        """How many segments the model answers at once."""
        return fastest_batch(self._task, self._run)

    def score(self, plan: Plan, number: int, sources: Sources, part: Path) -> Counts:
        """Write the rows of a shard to `part`, which is replaced as a whole; raise TidewheelError
        if its file is not what it was."""
        specification, shard = self.specification, plan.shards[number]
        file = plan.files[shard.file]
        sources.check(shard.file)
        schema = output_fields(self._task, specification, file)
        json_lines = specification.input_format in ("jsonl", "bedrock")
        texts = specification.columns.keep if json_lines else ()
        answering = Answering(
            self._task,
            specification.model,
            self._run,
            schema,
            file.name,
            self.reference,
            self.batch,
        )
        counts = Counts()
        with writing(part, specification.output_format, schema, texts) as write:
            for rows in rows_of(self._folder, specification, self._task, plan, number):
                table, found = answering.answer(rows)
                write(table)
                counts = counts.plus(found)
            sources.check(shard.file)
            if counts.read != shard.rows or counts.readings != shard.readings:
                raise TidewheelError(
                    f"{file.name} gave {counts.read} of {shard.rows} rows of a shard"
                )
        return counts


TOGETHER = 64  # segments


def fastest_batch(task: Task, run: Model) -> int:
    """Return how many segments are answered at once: one, if several together have other bits."""
    noise = np.random.default_rng(0)
    segments = noise.normal(size=(TOGETHER, *task.segment_shape)).astype(np.float32)
    alone = np.concatenate([run(segments[i : i + 1]) for i in range(TOGETHER)])
    return TOGETHER if run(segments).tobytes() == alone.tobytes() else 1
