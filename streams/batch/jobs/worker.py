"""A process that scores shards: `python -m streams.batch.jobs.worker FOLDER BYTES PARENT`.

See processes.py. What the task or a library prints goes to standard error.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from streams.batch.jobs.job_folder import JobFolder
from streams.batch.jobs.retrying import may_pass
from streams.batch.jobs.scoring import ShardScorer
from streams.batch.sinks.part_files import part_path
from streams.batch.sources.plan import Sources
from streams.batch.sources.tables import Failures
from streams.contract.errors import TidewheelError, UsageError
from streams.contract.task import load_task
from streams.runtime.processes import end_with_parent


def work(folder: Path, max_bytes: int) -> None:
    """Answer each number on standard input until that ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = JobFolder(folder)
    scorer: ShardScorer | None = None
    for line in sys.stdin:
        number, begun = int(line), time.monotonic()
        try:
            specification, plan = job.specification(), job.plan()
            assert plan is not None
            if scorer is None:
                task = load_task(specification.task.reference)
                scorer = ShardScorer(job, specification, task, max_bytes)
            part = part_path(folder, specification, plan, number)
            counts = scorer.score(plan, number, Sources(plan), part, lambda: None)
            answer = {"counts": counts.model_dump(), "seconds": time.monotonic() - begun}
        except (TidewheelError, *Failures) as exc:
            text = str(exc).splitlines()[0][:300] if str(exc) else type(exc).__name__
            kind = "usage" if isinstance(exc, UsageError) else "other"
            answer = {"error": text, "kind": "passing" if may_pass(exc) else kind}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    folder, max_bytes, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if not end_with_parent(parent):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work(folder, max_bytes)


if __name__ == "__main__":
    main()
