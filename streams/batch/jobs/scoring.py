"""One shard scored into its output file, in whatever process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from streams.batch.answering.answers import Answering, output_schema
from streams.batch.answering.batching import fastest_batch
from streams.batch.answering.watching import Watch, reference_of
from streams.batch.jobs.job_folder import JobFolder
from streams.batch.recordings.carry import carry_path, read_readings
from streams.batch.recordings.cutting import FIELDS
from streams.batch.records.documents import Counts, Named, Plan, PlannedFile, Specification
from streams.batch.records.rows import Rows
from streams.batch.sinks.part_files import writing
from streams.batch.sources.plan import Sources
from streams.batch.sources.reading import kept_fields, read_shard
from streams.batch.sources.text_lines import MAX_LINE_BYTES
from streams.contract.artifact import Artifact, digest_of, files_of
from streams.contract.errors import ArtifactError, TidewheelError, UsageError
from streams.contract.task import Task
from streams.drift.reference import Reference
from streams.learning.onnx_model import OnnxModel

Model = tuple[Callable[[np.ndarray], np.ndarray], Reference | None]


def artifact_of(folder: JobFolder, specification: Specification) -> Artifact:
    """Return the job's artifact; it was verified when the job was submitted."""
    try:
        data = folder.model.read_bytes()
        found = digest_of(data)
        if found != specification.digest:
            raise ArtifactError("digest", "it is not the artifact of the specification")
        manifest, files = files_of(data)
    except OSError as exc:
        raise UsageError(f"the job's model {folder.model} is gone: {exc}") from exc
    except ArtifactError as exc:
        raise UsageError(f"the job's model {folder.model}: {exc}") from exc
    return Artifact(manifest, found, files, len(data))


def load_model(folder: JobFolder, specification: Specification, task: Task) -> Model:
    """Return the job's model and its reference."""
    artifact = artifact_of(folder, specification)
    try:
        return OnnxModel(task, artifact).run, reference_of(artifact)
    except ArtifactError as exc:
        raise UsageError(f"the job's model {folder.model}: {exc}") from exc


def output_fields(task: Task, specification: Specification, file: PlannedFile | Named) -> pa.Schema:
    """Return all columns of the output, with those that come from the input."""
    columns = specification.columns
    kept = kept_fields(specification.input_format, file, columns)
    own = FIELDS if specification.rows == "readings" else []
    named = [pa.field(name, kind) for name, kind in own]
    return pa.schema([*output_schema(task, columns), *named, *kept])


class ShardScorer:
    """Scores shards of one job with its model."""

    def __init__(
        self,
        folder: JobFolder,
        specification: Specification,
        task: Task,
        max_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        """Load the model and measure its batch size; raise UsageError if it cannot be used."""
        self._folder, self._specification, self._task = folder, specification, task
        self._max_bytes = max_bytes
        self._run, self.reference = load_model(folder, specification, task)
        self._watch = Watch(task, self.reference)
        self._batch = fastest_batch(task, self._run)

    def score(
        self, plan: Plan, number: int, sources: Sources, part: Path, between: Callable[[], None]
    ) -> Counts:
        """Write the rows of a shard to `part`, which is replaced as a whole; `between` is called
        between two batches. Raise TidewheelError if its file is not what it was."""
        specification, shard = self._specification, plan.shards[number]
        file = plan.files[shard.file]
        sources.check(shard.file)
        schema = output_schema(self._task, specification.columns)
        answering = Answering(
            self._task,
            specification.model,
            self._run,
            schema,
            file.name,
            self._watch,
            self._batch,
        )
        counts = Counts()
        whole = output_fields(self._task, specification, file)
        with writing(part, specification.output_format, whole) as writer:
            for rows in self._rows(plan, number):
                between()
                table, found = answering.answer(rows)
                writer.write(table, rows)
                counts = counts.plus(found)
            sources.check(shard.file)
            if counts.read != shard.rows or counts.readings != shard.readings:
                raise TidewheelError(
                    f"{file.name} gave {counts.read} of {shard.rows} rows of a shard"
                )
        return counts

    def _rows(self, plan: Plan, number: int) -> Iterator[Rows]:
        shard = plan.shards[number]
        file, specification = plan.files[shard.file], self._specification
        kind, columns = specification.input_format, specification.columns
        if specification.rows == "segments":
            return read_shard(self._task, kind, file, shard, columns, self._max_bytes)
        carry = carry_path(self._folder.folder, number)
        return read_readings(self._task, kind, file, shard, columns, carry, self._max_bytes)
