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

import pyarrow.parquet as pq

from streams.batch.jobs.job_folder import JobFolder, now_us, size_of
from streams.batch.jobs.scoring import ShardScorer
from streams.batch.jobs.submission import check_task, most_errors
from streams.batch.recordings.carry import plan_readings
from streams.batch.records.documents import (
    Counts,
    Manifest,
    Plan,
    ShardRecord,
    Specification,
    State,
)
from streams.batch.sinks.output import MANIFEST, part_name
from streams.batch.sources.plan import Cutter, Sources, Stopped
from streams.batch.sources.tables import Failures
from streams.contract.errors import TidewheelError, UsageError
from streams.contract.task import Task
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
        scorer = ShardScorer(self.folder, self.specification, self.task, self._cutter().line_bytes)
        self.folder.sweep(self.output)
        try:
            if plan is None:
                plan = self._make_plan()
                sources = Sources(plan)
            else:
                sources = self._same_sources(plan)
            self._score(plan, sources, scorer)
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
        cutter, specification = self._cutter(), self.specification
        plan = cutter.plan(specification.inputs)
        if specification.rows == "readings":
            plan = plan_readings(
                plan, self.task, specification.input_format, specification.columns,
                self.folder.folder, self._check, cutter.line_bytes,
            )  # fmt: skip
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

    def _score(self, plan: Plan, sources: Sources, scorer: ShardScorer) -> None:
        limit = most_errors(self.max_errors or self.specification.max_errors, plan.total)
        begun, counts = time.monotonic(), self._counts(plan)
        for shard in self.folder.missing(plan, self.specification):
            _refuse_errors(counts, limit)
            self._check()
            found = self._score_shard(plan, shard, sources, scorer)
            counts = counts.plus(found)
            self.tell(counts, plan.total, time.monotonic() - begun)
        _refuse_errors(counts, limit)

    def _score_shard(
        self, plan: Plan, number: int, sources: Sources, scorer: ShardScorer
    ) -> Counts:
        begun = time.monotonic()
        before = self.folder.record(number)
        attempt = ShardRecord(state="InProgress", attempts=before.attempts + 1 if before else 1)
        self.folder.write_record(number, attempt)
        self.reached("score-step-3")
        part = self.output / part_name(number, self.specification.output_format)
        counts = scorer.score(plan, number, sources, part, self._note_stopping)
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
        readings=counts.readings,
        broken=counts.broken,
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
