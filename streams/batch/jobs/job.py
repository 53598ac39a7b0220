"""A job from its submission to its manifest, in numbered steps:

1. model.twa and specification.json are written: the job is Submitted
2. the input is cut, plan.json is written: the job is InProgress. Tables are hashed meanwhile
3. of a shard: an attempt is counted
4. of a shard: its output file is written and renamed
5. of a shard: when plan.json has the sums of all files, its counts are written; the shard is
   Completed, or Scored where it is to be loaded
6. of a shard: its rows are loaded into the database, or put as an object
7. of a shard: it is Completed, and its file is removed
8. the sums are compared, the manifest is written
9. the job is Completed, PartiallyCompleted or Failed

A restart continues where the last complete step ended; a shard without step 5 is scored again as
another attempt, one without step 7 is loaded again: in place of its rows, or of its object.
"""

import random
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from streams.batch.jobs.answers import output_fields
from streams.batch.jobs.job_folder import JobFolder, now_us, size_of
from streams.batch.jobs.manifest import (
    counts_of,
    example_of,
    manifest_of,
    verdict,
    write_manifest,
    write_report,
)
from streams.batch.jobs.scoring import Scorers, ShardScorer
from streams.batch.jobs.submission import check_task, open_sink
from streams.batch.output_files import part_path
from streams.batch.progress import Counts, Manifest, Plan, ShardRecord, State
from streams.batch.rows import may_pass
from streams.batch.sources.plan import Cutter, Sources, Stopped
from streams.batch.sources.tables import Failures
from streams.batch.sources.windows import ShardRows
from streams.batch.specification import Settings, most_errors
from streams.contract.errors import Retryable, TidewheelError, UsageError, line_of
from streams.contract.task import Task
from streams.runtime.failpoints import Failpoint, unarmed

TRIES = 8
PAUSE_S = (0.25, 10.0)

T = TypeVar("T")


class TimeOver(Exception):
    """The job has used its time."""


@dataclass
class Job:
    """One submitted job in this process, which holds its folder.

    stopping    whether to end between two shards
    tell        is called with the progress after each shard, also while the input is read first
    settings    those of the specification, or others: timeout, processes and max_errors count
    lock        the descriptor of the folder's lock, which the processes that score hold too
    from_queue  `jobs stop` that was called before the start counts
    pause_s     before a shard is loaded for the second time, and at most
    shard_sizes  other ones than the Cutter's
    """

    folder: JobFolder
    task: Task
    stopping: Callable[[], bool] = lambda: False
    tell: Callable[[str], None] = lambda _text: None
    reached: Failpoint = unarmed
    settings: Settings | None = None
    lock: int | None = None
    from_queue: bool = False
    pause_s: tuple[float, float] = PAUSE_S
    clock: Callable[[], float] = time.monotonic
    shard_sizes: Mapping[str, int] = field(default_factory=dict)

    def run(self) -> Manifest:
        """Do what is missing, and write the report; return the manifest of the job's new state.
        Raise UsageError if the task, the model or the input is not what it was."""
        self.specification = self.folder.specification()
        self._asked = self.settings or self.specification.settings
        self._begun = self.clock()
        before, plan = self.folder.state().state, self.folder.plan()
        if before == "Completed" and plan and not self.folder.missing(plan, self.specification):
            return manifest_of(self.folder)
        self.plan = plan or Plan(files=[], shards=[])
        found = self._run(planned=plan is not None and plan.summed)
        try:
            write_report(self.folder)
        except (TidewheelError, OSError) as exc:
            with suppress(OSError):
                self.folder.note(f"the report is not written: {exc}")
        return found

    def _run(self, *, planned: bool) -> Manifest:
        check_task(self.task, self.specification)
        if not self.from_queue:
            self.folder.request_stop(False)
        self.sink = open_sink(self.specification)
        try:
            self.folder.sweep(self.specification)
            with closing(Scorers(self.folder, self._asked.processes, self.lock)) as scorers:
                self._scored_by(scorers, planned=planned)
            return self._end(*verdict(self.folder, self.specification, self.plan, self.sink))
        except Stopped:
            self.folder.write_state("Stopped")
            return manifest_of(self.folder, "Stopped")
        except TimeOver:
            reason = f"its time of {self._asked.timeout or 0:g} s was over"
            return self._end("PartiallyCompleted", reason)
        except UsageError:
            raise
        except (TidewheelError, *Failures) as exc:
            return self._end("Failed", line_of(exc), passing=may_pass(exc))

    def _scored_by(self, scorers: Scorers, *, planned: bool) -> None:
        """Take the steps 2 to 7. The processes that score start at once, while this one tests
        whether the model can be used, and cuts the input."""
        scorers.start(self.plan, self.folder.missing(self.plan, self.specification))
        own = ShardScorer(self.folder, self.specification, self.task)
        sources = self._same_sources() if planned else self._make_plan()
        if self.sink is not None and self.plan.files:
            schema = output_fields(self.task, self.specification, self.plan.files[0])
            self._again(partial(self.sink.prepare, schema), "the output")
        try:
            with closing(sources):
                self._score(own, sources, scorers)
        except Exception:
            scorers.close()  # or one of them writes a file afterwards
            self._discard()
            raise

    # --- steps ----------------------------------------------------------------------------------

    def _make_plan(self) -> Sources:
        """Step 2."""
        found = self.specification
        self.folder.write_state("Validating")
        Sources(self.plan).look(range(len(self.plan.files)))
        for number in range(len(self.plan.shards)):  # of a plan that did not get its sums
            self._part(number).unlink(missing_ok=True)
        whole = found.output_format == "bedrock"
        cutter = Cutter(found.input_format, self._check, whole_files=whole, **self.shard_sizes)
        rows = ShardRows(self.folder.folder, found, self.task)
        plan = rows.plan(cutter.plan(found.inputs), self._look)
        self._plan(plan)
        self.folder.write_state("InProgress")
        self.reached("score-step-2")
        sources = Sources(plan)
        sources.begin([index for index, file in enumerate(plan.files) if not file.crc32c])
        return sources

    def _same_sources(self) -> Sources:
        """Return the input of the shards that are missing, after comparing it with the plan."""
        missing = self.folder.missing(self.plan, self.specification)
        sources = Sources(self.plan)
        self._plan(sources.verify({self.plan.shards[n].file for n in missing}, self._check))
        self.folder.write_state("InProgress")
        return sources

    def _score(self, own: ShardScorer, sources: Sources, scorers: Scorers) -> None:
        self._counts = counts_of(self.folder, self.specification, self.plan)
        self._read_before, self._scoring_since = self._counts.read, self.clock()
        self._count(Counts())
        todo = []
        for number in self.folder.missing(self.plan, self.specification):
            if (found := self._load(number)) is None:
                todo.append(number)
            else:
                self._count(found)
        for number, found, seconds in scorers.score(own, self.plan, sources, todo, self._attempt):
            self._settle(sources)
            self._scored(number, found, seconds)
            self._load(number)
            self._count(found)
        self._settle(sources)

    def _discard(self) -> None:
        """Remove the output of shards that are not counted: their files were not compared yet."""
        for number in self.folder.missing(self.plan, self.specification):
            record = self.folder.record(number)
            if record is None or record.state == "InProgress":
                self._part(number).unlink(missing_ok=True)

    def _settle(self, sources: Sources) -> None:
        """Write the sums of the input's files; before, no shard is done."""
        self._plan(sources.settled(self._check))

    def _plan(self, plan: Plan) -> None:
        if plan is not self.plan:
            self.plan = plan
            self.folder.write_plan(plan)

    def _count(self, found: Counts) -> None:
        """Add the counts of a shard; raise TidewheelError if too many rows have errors, or too many
        readings are broken."""
        counts = self._counts = self._counts.plus(found)
        text = f"{counts.read:,} of {self.plan.total:,} rows, {counts.failed:,} errors"
        if rows := counts.read - self._read_before:
            text += f", {rows / max(self.clock() - self._scoring_since, 1e-3):,.0f} rows/s"
        self.tell(text)
        for wrong, of, what in (
            (counts.failed, self.plan.total, "rows have an error"),
            (counts.faulty, self.plan.readings, f"readings are broken{example_of(counts)}"),
        ):
            limit = most_errors(self._asked.max_errors, of)
            if limit is not None and wrong > limit:
                raise TidewheelError(
                    f"{wrong:,} {what}, --max-errors allows {limit:,}: "
                    "more are allowed with --max-errors of jobs resume"
                )

    def _attempt(self, number: int) -> None:
        """Step 3, before a shard is begun; raise Stopped or TimeOver where no other one may be."""
        self._check()
        before = self.folder.record(number) or ShardRecord(state="InProgress", attempts=0)
        begun = before.begun_again(before.attempts + 1)
        self.folder.write_record(number, begun)
        if begun.attempts > 1:
            self.folder.note(f"shard {number}: attempt {begun.attempts}")
        self.reached("score-step-3")

    def _scored(self, number: int, counts: Counts, seconds: float) -> None:
        """Step 5, after another process or this one has done step 4."""
        self.reached("score-step-4")
        attempt = self.folder.record(number)
        assert attempt is not None
        found = {
            "state": "Completed" if self.sink is None else "Scored",
            "counts": counts,
            "seconds": seconds,
            "ended_us": now_us(),
            "bytes": size_of(self._part(number)) or 0,
        }
        self.folder.write_record(number, attempt.replace(**found))
        self.reached("score-step-5")

    def _load(self, number: int) -> Counts | None:
        """Do steps 6 and 7 of a scored shard; return its counts, None if it has to be scored first,
        or is not to be loaded."""
        record, sink, part = self.folder.record(number), self.sink, self._part(number)
        if sink is None or record is None or record.state != "Scored":
            return None
        if size_of(part) != record.bytes:
            return None
        again, begun = record.loaded, record.replace(loaded=True)
        if not again:
            self.folder.write_record(number, begun)

        def load() -> None:
            nonlocal again
            before, again = again, True  # also where no answer comes
            sink.load(number, part, again=before)

        self._again(load, f"shard {number}")
        self.reached("score-step-6")
        self.folder.write_record(number, begun.replace(state="Completed"))
        part.unlink(missing_ok=True)
        self.reached("score-step-7")
        return record.counts

    def _again(self, work: Callable[[], T], what: str) -> T:
        """Return what `work` does; try it again while that may pass."""
        pause, most = self.pause_s
        for left in reversed(range(TRIES)):
            try:
                return work()
            except Retryable as exc:
                if not left:
                    raise
                self.folder.note(f"{what} is loaded again in {pause:.2g} s: {exc}")
            self._check()
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, most)
        raise AssertionError

    def _end(self, state: State, reason: str, *, passing: bool = False) -> Manifest:
        manifest = manifest_of(self.folder, state, reason)
        try:
            write_manifest(self.folder, self.specification, manifest)
        except (OSError, Retryable) as exc:
            if state != "Failed":
                state, reason = "Failed", f"the manifest cannot be written: {line_of(exc)}"
                passing = may_pass(exc)
            manifest = manifest_of(self.folder, state, reason)
        self.reached("score-step-8")
        try:
            self.folder.write_state(state, reason, passing=passing)
        except OSError as exc:  # a full disk: the state stays as it was, and can be resumed
            known = exc.strerror is not None and exc.strerror in reason
            text = reason if known else f"{reason or 'the state cannot be written'}: {exc}"
            raise TidewheelError(f"{text}: make room, resume") from exc
        self.reached("score-step-9")
        return manifest

    def _look(self, done: int, of: int) -> None:
        """Say how much of the input has been read before it is scored."""
        self._check()
        self.tell(f"reading the input: {done:,} of {of:,} parts")

    # --- parts ----------------------------------------------------------------------------------

    def _part(self, number: int) -> Path:
        return part_path(self.folder.folder, self.specification, self.plan, number)

    def _check(self) -> None:
        if self.stopping() or self.folder.stop_requested:
            raise Stopped
        timeout_s = self._asked.timeout
        if timeout_s is not None and self.clock() - self._begun > timeout_s:
            raise TimeOver
