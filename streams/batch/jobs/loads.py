"""Steps 6 and 7 of a job: scored shards into its database or objects, each once; and what is tried
again.

`jobs resume --failed` scores shards with errors again. A shard's `generation` grows, so a database
that has the rows of the one before does not count as done: its rows are replaced in the transaction
that adds the new ones.
"""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from streams.batch.jobs.job_folder import JobFolder, size_of
from streams.batch.jobs.scoring import output_fields
from streams.batch.records.progress import Counts, ShardRecord
from streams.batch.records.specification import Plan
from streams.batch.sinks.files import part_path
from streams.batch.sinks.output import open_sink
from streams.contract.errors import Retryable
from streams.contract.task import Task
from streams.runtime.failpoints import Failpoint

T = TypeVar("T")

TRIES = 8
PAUSE_S = (0.25, 10.0)
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class Loader:
    """Loads the shards of one job; `sink` is None where its files are the output. pause_s: before
    the second try, and at most."""

    def __init__(
        self,
        job: JobFolder,
        plan: Plan,
        task: Task,
        reached: Failpoint,
        check: Callable[[], None],
        pause_s: tuple[float, float] = PAUSE_S,
    ) -> None:
        self._job, self._plan, self._specification = job, plan, job.specification()
        self._reached, self._check, self._pause_s = reached, check, pause_s
        self.sink = sink = open_sink(self._specification)
        if sink is not None and plan.files:
            schema = output_fields(task, self._specification, plan.files[0])
            self._again(lambda: sink.prepare(schema), "the output")

    def finish(self, number: int) -> Counts | None:
        """Do steps 6 and 7 of a shard; return its counts, None if it has to be scored first."""
        record, sink = self._job.record(number), self.sink
        if sink is None or record is None or record.state != "Scored":
            return None
        part = part_path(self._job.folder, self._specification, self._plan, number)

        def load() -> bool:
            if sink.committed(number, record.generation):  # also what no answer came for
                return True
            if size_of(part) != record.bytes:
                return False
            sink.load(number, record.generation, part)
            return True

        if not self._again(load, f"shard {number}"):
            return None
        self._reached("score-step-6")
        self._job.write_record(number, record.model_copy(update={"state": "Completed"}))
        part.unlink(missing_ok=True)
        self._reached("score-step-7")
        return record.counts

    def _again(self, work: Callable[[], T], what: str) -> T:
        pause, most = self._pause_s
        for left in reversed(range(TRIES)):
            try:
                return work()
            except Retryable as exc:
                if not left:
                    raise
                self._job.note(f"{what} is loaded again in {pause:.2g} s: {exc}")
            self._check()
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, most)
        raise AssertionError


def mark_failed(job: JobFolder) -> int:
    """Mark the shards that have rows with errors as not done; return how many. The caller holds the
    folder."""
    job.specification()
    plan, marked = job.plan(), 0
    for number in range(len(plan.shards) if plan is not None else 0):
        record = job.record(number)
        if record is None or record.state == "InProgress" or not record.counts.failed:
            continue
        again = ShardRecord(
            state="InProgress", attempts=record.attempts, generation=record.generation + 1
        )
        job.write_record(number, again)
        marked += 1
    if marked:
        job.write_state("InProgress", f"{marked} shards with errors are scored again")
    return marked


def may_pass(error: BaseException) -> bool:
    """Return whether what failed may succeed later: a service or a disk, not the input."""
    if isinstance(error, OSError):
        return not isinstance(error, LASTING)
    cause = error.__cause__  # what a library raised, translated
    return isinstance(error, Retryable) or (isinstance(cause, OSError) and may_pass(cause))
