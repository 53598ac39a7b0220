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

from streams.batch.jobs.job_folder import JobFolder
from streams.batch.jobs.loads import may_pass
from streams.batch.jobs.scoring import ShardScorer
from streams.batch.records.rows import line_of
from streams.batch.sinks.files import part_path
from streams.batch.sources.plan import Sources
from streams.batch.sources.tables import Failures
from streams.contract.errors import TidewheelError, UsageError
from streams.contract.task import load_task
from streams.runtime.processes import end_with_parent


class Worker:
    """Scores shards of one job, one after the other, with one model, which is loaded once."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._job, self._max_bytes = JobFolder(folder), max_bytes
        self._scorer: ShardScorer | None = None

    def scorer(self) -> ShardScorer:
        if self._scorer is None:
            found = self._job.specification()
            task = load_task(found.task.reference)
            self._scorer = ShardScorer(self._job, found, task, self._max_bytes)
        return self._scorer

    def answer(self, number: int) -> dict[str, object]:
        """Write a shard's file; return its counts, or what is wrong, as JSON has it."""
        begun = time.monotonic()
        try:
            plan, found = self._job.plan(), self._job.specification()
            assert plan is not None
            part = part_path(self._job.folder, found, plan, number)
            counts = self.scorer().score(plan, number, Sources(plan), part, lambda: None)
            return {"counts": counts.model_dump(), "seconds": time.monotonic() - begun}
        except (TidewheelError, *Failures) as exc:
            text = line_of(exc)
            kind = "usage" if isinstance(exc, UsageError) else "other"
            return {"error": text, "kind": "passing" if may_pass(exc) else kind}


def main() -> None:
    folder, max_bytes, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if not end_with_parent(parent):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(folder, max_bytes)
    with suppress(TidewheelError, *Failures):  # what is wrong is told with the first answer
        _ = worker.scorer().batch
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(int(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
