"""Steps 6 and 7 of a job: scored shards into its database, topic or objects, each once."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from streams.batch.jobs.job_folder import JobFolder, size_of
from streams.batch.jobs.scoring import output_fields
from streams.batch.records.documents import Plan, Specification
from streams.batch.records.progress import Counts, ShardRecord
from streams.batch.sinks.loading import Sink, open_sink
from streams.batch.sinks.part_files import part_path
from streams.contract.errors import Retryable
from streams.contract.task import Task
from streams.kafka.settings import BrokerSettings
from streams.runtime.failpoints import Failpoint

T = TypeVar("T")

TRIES = 8
PAUSE_S = (0.25, 10.0)  # before the second try, and at most


class Loader:
    """Loads the shards of one job; `loads` is False where its files are the output."""

    def __init__(
        self,
        folder: JobFolder,
        specification: Specification,
        plan: Plan,
        task: Task,
        broker: Callable[[], BrokerSettings] | None,
        reached: Failpoint,
        check: Callable[[], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._folder, self._specification, self._plan = folder, specification, plan
        self._reached, self._check, self._sleep = reached, check, sleep
        self.sink: Sink | None = open_sink(specification, broker)
        if self.sink is not None and plan.files:
            schema = output_fields(task, specification, plan.files[0])
            sink = self.sink
            self._again(lambda: sink.prepare(schema), "the output")

    @property
    def loads(self) -> bool:
        return self.sink is not None

    def finish(self, number: int) -> Counts | None:
        """Do steps 6 and 7 of a shard; return its counts, None if it has to be scored first."""
        record = self._folder.record(number)
        if self.sink is None or record is None or record.state != "Scored":
            return None
        part = part_path(self._folder.folder, self._specification, self._plan, number)
        sink, generation = self.sink, record.generation

        def load() -> bool:
            if sink.committed(number, generation):  # also what no answer came for
                return True
            if size_of(part) != record.bytes:
                return False
            sink.load(number, generation, part)
            return True

        if not self._again(load, f"shard {number}"):
            return None
        self._reached("score-step-6")
        self._complete(number, record)
        part.unlink(missing_ok=True)
        self._reached("score-step-7")
        return record.counts

    def _complete(self, number: int, record: ShardRecord) -> None:
        self._folder.write_record(number, record.model_copy(update={"state": "Completed"}))

    def _again(self, work: Callable[[], T], what: str) -> T:
        pause = PAUSE_S[0]
        for tried in range(1, TRIES + 1):
            try:
                return work()
            except Retryable as exc:
                if tried == TRIES:
                    raise
                self._folder.note(f"{what} is loaded again in {pause:.2g} s: {exc}")
            self._check()
            self._sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, PAUSE_S[1])
        raise AssertionError
