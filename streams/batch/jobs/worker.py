"""A process that scores shards: `python -m streams.batch.jobs.worker FOLDER BYTES PARENT`.

See processes.py. What the task or a library prints goes to standard error.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from streams.batch.jobs.job_folder import JobFolder
from streams.batch.jobs.planning import sources_of
from streams.batch.jobs.retrying import may_pass
from streams.batch.jobs.scoring import ShardScorer
from streams.batch.records.documents import Specification
from streams.batch.records.progress import Counts
from streams.batch.sinks.part_files import part_path
from streams.batch.sources.tables import Failures
from streams.contract.errors import Retryable, TidewheelError, UsageError
from streams.contract.task import load_task
from streams.kafka.settings import BrokerSettings
from streams.runtime.processes import end_with_parent

Answer = dict[str, Any]
KINDS = {"usage": UsageError, "passing": Retryable, "other": TidewheelError}  # of an error


def broker() -> BrokerSettings:
    """Return the settings of Kafka, which the process of the job has passed on."""
    return BrokerSettings()  # type: ignore[call-arg]  # pydantic fills it from the alias


class ShardAnswers:
    """Scores shards of one job, one after the other, with one model."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._job, self._max_bytes = JobFolder(folder), max_bytes
        self._scorer: ShardScorer | None = None

    def prepare(self) -> None:
        """Load the model before there is a shard; what is wrong is told with the first answer."""
        with suppress(TidewheelError, *Failures):
            _ = self._loaded(self._job.specification()).batch

    def answer(self, number: int) -> Answer:
        """Write a shard's file; return its counts, or what is wrong, as JSON has it."""
        begun = time.monotonic()
        try:
            specification, plan = self._job.specification(), self._job.plan()
            assert plan is not None
            scorer = self._loaded(specification)
            part = part_path(self._job.folder, specification, plan, number)
            sources = sources_of(specification, plan)
            counts = scorer.score(plan, number, sources, part, lambda: None)
            return {"counts": counts.model_dump(), "seconds": time.monotonic() - begun}
        except (TidewheelError, *Failures) as exc:
            text = str(exc).splitlines()[0][:300] if str(exc) else type(exc).__name__
            kind = "usage" if isinstance(exc, UsageError) else "other"
            return {"error": text, "kind": "passing" if may_pass(exc) else kind}

    def _loaded(self, specification: Specification) -> ShardScorer:
        if self._scorer is None:
            task = load_task(specification.task.reference)
            self._scorer = ShardScorer(self._job, specification, task, self._max_bytes, broker)
        return self._scorer


def answered(answer: Answer) -> tuple[Counts, float]:
    """Return counts and seconds of an answer; raise what is wrong."""
    if "error" in answer:
        raise KINDS[answer["kind"]](answer["error"])
    return Counts.model_validate(answer["counts"]), answer["seconds"]


def work(folder: Path, max_bytes: int) -> None:
    """Answer each number on standard input until that ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = ShardAnswers(folder, max_bytes)
    worker.prepare()
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(int(line))) + "\n")
        answers.flush()


def main() -> None:
    folder, max_bytes, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if not end_with_parent(parent):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work(folder, max_bytes)


if __name__ == "__main__":
    main()
