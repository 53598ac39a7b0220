"""A job from its submission to its manifest, in the numbered steps of docs/architecture/batch.md:

1. model.twa and specification.json are written: the job is Submitted
2. the input is hashed and cut, plan.json is written: the job is InProgress
3. of a shard: an attempt is counted
4. of a shard: its output file is written and renamed
5. of a shard: its counts are written
6. the sums are compared, the manifest is written
7. the job is Completed, or Failed

A restart goes on where the last complete step ended; a shard without step 5 is scored again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from streams.batch.jobs.answers import Answering, output_schema
from streams.batch.jobs.job_folder import JobFolder, now_us, size_of
from streams.batch.jobs.submission import check_task, most_errors
from streams.batch.records.documents import (
    Counts,
    Manifest,
    Plan,
    Shard,
    ShardRecord,
    Specification,
    State,
)
from streams.batch.sinks.output import MANIFEST, part_name, writing
from streams.batch.sources.plan import Cutter, Sources, Stopped
from streams.batch.sources.reading import kept_fields, read_shard
from streams.batch.sources.tables import Failures
from streams.contract.artifact import Artifact, digest_of, files_of
from streams.contract.errors import ArtifactError, TidewheelError, UsageError
from streams.contract.task import Task
from streams.learning.onnx_model import OnnxModel
from streams.runtime.disk import write_atomic
from streams.runtime.failpoints import Failpoint, unarmed

Tell = Callable[[Counts, int, float], None]  # so far, rows in all, seconds of this process


def silent(_counts: Counts, _total: int, _seconds: float) -> None:
    """Report no progress."""


def submit(
    folder: JobFolder, specification: Specification, model: bytes, reached: Failpoint
) -> None:
    """Step 1; the caller holds the folder."""
    folder.write_specification(specification, model)
    reached("score-step-1")


@dataclass
class Job:
    """One submitted job in this process, which holds its folder.

    stopping    whether to end between two shards
    tell        is called after each shard
    max_errors  replaces the limit of the specification
    """

    folder: JobFolder
    task: Task
    stopping: Callable[[], bool] = lambda: False
    tell: Tell = silent
    reached: Failpoint = unarmed
    max_errors: str | None = None
    cutter: Callable[[Specification, Callable[[], None]], Cutter] = field(
        default=lambda specification, check: Cutter(specification.input_format, check)
    )

    def run(self) -> Manifest:
        """Do what is missing; return the manifest of the job's new state. Raise UsageError if the
        task, the model or the input is not what it was."""
        self.specification = self.folder.specification()
        self.output = Path(self.specification.output)
        before = self.folder.state().state
        plan = self.folder.plan()
        if before == "Completed" and plan and not self.folder.missing(plan, self.specification):
            return self._manifest(plan, "Completed", "")
        check_task(self.task, self.specification)
        model = self._model()
        self.folder.sweep(self.output)
        try:
            if plan is None:
                plan = self._make_plan()
                sources = Sources(plan)
            else:
                sources = self._same_sources(plan)
            self._score(plan, sources, model)
        except Stopped:
            self.folder.write_state("Stopped")
            return self._manifest(plan or Plan(files=[], shards=[]), "Stopped", "")
        except UsageError:
            raise
        except (TidewheelError, *Failures) as exc:
            reason = str(exc).splitlines()[0][:300] if str(exc) else type(exc).__name__
            return self._end(plan or Plan(files=[], shards=[]), "Failed", reason)
        return self._end(plan, *self._verdict(plan))

    # --- steps ----------------------------------------------------------------------------------

    def _make_plan(self) -> Plan:
        self.folder.write_state("Validating")
        plan = self._cutter().plan(self.specification.inputs)
        self.folder.write_plan(plan)
        self.folder.write_state("InProgress")
        self.reached("score-step-2")
        return plan

    def _same_sources(self, plan: Plan) -> Sources:
        """Return the input of the shards that are missing, after comparing it with the plan."""
        missing = self.folder.missing(plan, self.specification)
        sources = Sources(plan)
        sources.verify({plan.shards[shard].file for shard in missing}, self._check)
        self.folder.write_state("InProgress")
        return sources

    def _score(self, plan: Plan, sources: Sources, model: OnnxModel) -> None:
        limit = most_errors(self.max_errors or self.specification.max_errors, plan.total)
        begun, counts = time.monotonic(), self._counts(plan)
        for shard in self.folder.missing(plan, self.specification):
            _refuse_errors(counts, limit)
            self._check()
            found = self._score_shard(plan, shard, sources, model)
            counts = counts.plus(found)
            self.tell(counts, plan.total, time.monotonic() - begun)
        _refuse_errors(counts, limit)

    def _score_shard(self, plan: Plan, number: int, sources: Sources, model: OnnxModel) -> Counts:
        begun, shard = time.monotonic(), plan.shards[number]
        before = self.folder.record(number)
        attempt = ShardRecord(state="InProgress", attempts=before.attempts + 1 if before else 1)
        self.folder.write_record(number, attempt)
        self.reached("score-step-3")
        part = self.output / part_name(number, self.specification.output_format)
        counts = self._write_part(part, plan, shard, sources, model)
        self.reached("score-step-4")
        done = attempt.model_copy(
            update={
                "state": "Completed",
                "counts": counts,
                "seconds": time.monotonic() - begun,
                "bytes": size_of(part) or 0,
            }
        )
        self.folder.write_record(number, done)
        self.reached("score-step-5")
        return counts

    def _write_part(
        self, part: Path, plan: Plan, shard: Shard, sources: Sources, model: OnnxModel
    ) -> Counts:
        file, columns = plan.files[shard.file], self.specification.columns
        sources.check(shard.file)
        schema = output_schema(self.task, columns)
        answering = Answering(self.task, self.specification.model, model.run, schema, file.name)
        counts = Counts()
        kind, limit = self.specification.input_format, self._cutter().line_bytes
        whole = pa.schema([*schema, *kept_fields(kind, file, columns)])
        with writing(part, self.specification.output_format, whole) as writer:
            for rows in read_shard(self.task, kind, file, shard, columns, limit):
                self._note_stopping()
                table, found = answering.answer(rows)
                writer.write(table, rows)
                counts = counts.plus(found)
            sources.check(shard.file)
            if counts.read != shard.rows:
                raise TidewheelError(
                    f"{file.name} gave {counts.read} of {shard.rows} rows of a shard"
                )
        return counts

    def _end(self, plan: Plan, state: State, reason: str) -> Manifest:
        manifest = self._manifest(plan, state, reason)
        try:
            data = manifest.model_dump_json(indent=2).encode() + b"\n"
            write_atomic(self.output / MANIFEST, data)
            self.reached("score-step-6")
            self.folder.write_state(state, reason)
        except OSError as exc:  # a full disk: the state stays as it was, and can be resumed
            raise TidewheelError(f"{reason or 'the manifest'}: {exc}: make room, resume") from exc
        self.reached("score-step-7")
        return manifest

    # --- parts ----------------------------------------------------------------------------------

    def _model(self) -> OnnxModel:
        """Return the job's model; it was verified when the job was submitted."""
        try:
            data = self.folder.model.read_bytes()
            found = digest_of(data)
            if found != self.specification.digest:
                raise ArtifactError("digest", "it is not the artifact of the specification")
            manifest, files = files_of(data)
            return OnnxModel(self.task, Artifact(manifest, found, files, len(data)))
        except OSError as exc:
            raise UsageError(f"the job's model {self.folder.model} is gone: {exc}") from exc
        except ArtifactError as exc:
            raise UsageError(f"the job's model {self.folder.model}: {exc}") from exc

    def _cutter(self) -> Cutter:
        return self.cutter(self.specification, self._check)

    def _check(self) -> None:
        if self.stopping():
            raise Stopped

    def _note_stopping(self) -> None:
        """Say that the job ends after this shard."""
        if self.stopping() and self.folder.state().state != "Stopping":
            self.folder.write_state("Stopping")

    def _completed(self, plan: Plan) -> list[ShardRecord]:
        missing = set(self.folder.missing(plan, self.specification))
        records = [self.folder.record(n) for n in range(len(plan.shards)) if n not in missing]
        return [record for record in records if record is not None]

    def _counts(self, plan: Plan) -> Counts:
        total = Counts()
        for record in self._completed(plan):
            total = total.plus(record.counts)
        return total

    def _verdict(self, plan: Plan) -> tuple[State, str]:
        """Return the state in which a job ends whose shards are all scored."""
        for number, shard in enumerate(plan.shards):
            record = self.folder.record(number)
            part = self.output / part_name(number, self.specification.output_format)
            if record is None or record.counts.read != shard.rows:
                return "Failed", f"the counts of shard {number} are not those of its rows"
            if size_of(part) != record.bytes:
                return "Failed", f"{part} is not as it was written"
            if (
                part.suffix == ".parquet"
                and pq.read_metadata(part).num_rows != record.counts.processed
            ):
                return "Failed", f"{part} has not the rows of its shard"
        if self._counts(plan).read != plan.total:
            return "Failed", "the sums do not agree"
        return "Completed", ""

    def _manifest(self, plan: Plan, state: State, reason: str) -> Manifest:
        return manifest_of(self.folder, self.specification, plan, state, reason)


def _refuse_errors(counts: Counts, limit: int | None) -> None:
    if limit is not None and counts.failed > limit:
        raise TidewheelError(
            f"{counts.failed:,} rows have an error, --max-errors allows {limit:,}: "
            "more are allowed with --max-errors of jobs resume"
        )


def manifest_of(
    folder: JobFolder, specification: Specification, plan: Plan, state: State, reason: str
) -> Manifest:
    """Return what a job has done so far."""
    missing = set(folder.missing(plan, specification))
    records = {n: record for n in range(len(plan.shards)) if (record := folder.record(n))}
    counts, seconds = Counts(), 0.0
    for number, record in records.items():
        if number not in missing:
            counts, seconds = counts.plus(record.counts), seconds + record.seconds
    return Manifest(
        state=state,
        reason=reason,
        task=specification.task.name,
        task_version=specification.task.version,
        model=specification.model,
        digest=specification.digest,
        job=str(folder.folder),
        output=specification.output,
        shards=len(plan.shards),
        completed=len(plan.shards) - len(missing),
        attempts=sum(record.attempts for record in records.values()),
        total=plan.total,
        excluded=counts.excluded,
        processed=counts.processed,
        succeeded=counts.succeeded,
        errors=counts.errors,
        labelled=counts.labelled,
        correct=counts.correct,
        seconds=seconds,
        rows_per_s=counts.processed / seconds if seconds else 0.0,
        started_us=specification.created_us,
        ended_us=now_us(),
        inputs=plan.files,
    )
