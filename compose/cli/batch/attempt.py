"""The process of one attempt, `python -m compose.cli.batch.attempt`, which `jobs run` starts.

It inherits the lock of the job's folder. What becomes of the job is in its state: the runner looks
there when this process has ended.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from streams.contract.errors import TidewheelError
from streams.runtime.processes import end_with_parent


def start(state: Path, identity: str, lock: int) -> "subprocess.Popen[bytes]":
    """Start an attempt, which lets SIGTERM through when it can handle it."""
    module = [sys.executable, "-m", "compose.cli.batch.attempt"]
    words = [str(state.absolute()), identity, str(lock), str(os.getpid())]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return subprocess.Popen(
            [*module, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            start_new_session=True, pass_fds=(lock,),
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def main() -> None:
    state, identity, lock, parent = sys.argv[1:]
    if not end_with_parent(int(parent)):
        return
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        attempt(Path(state), identity, int(lock), stop.is_set)
    except TidewheelError as exc:  # the queue itself, or a disk: the runner sees no state
        sys.exit(f"tidewheel: {exc}")


def attempt(state: Path, identity: str, lock: int, stopping: Callable[[], bool]) -> None:
    """Do the steps 2 and 3 of streams/batch/queue/runner.py."""
    from compose.cli.batch.submitting import specified
    from streams.batch.jobs.job import Job, submit
    from streams.batch.jobs.job_index import JobIndex
    from streams.batch.jobs.loads import may_pass
    from streams.batch.queue.job_queue import JobQueue
    from streams.batch.records.progress import OVER
    from streams.batch.records.rows import line_of
    from streams.contract.errors import UsageError
    from streams.contract.task import load_task
    from streams.runtime.failpoints import read_failpoint

    reached = read_failpoint(os.environ)
    entry = JobQueue(state).entry(identity)
    if entry is None:
        return
    job, settings = entry.job, entry.settings
    try:
        os.chdir(settings.cwd)
        if not job.submitted:
            _, found, models = specified(settings.changed(state=state))
            submit(job, found.model_copy(update={"id": identity}), models, reached)
            job.write_state("Submitted")
        reached("attempt-step-2")
        if job.specification().id != identity:
            raise UsageError(f"{job.folder} is another job, {job.specification().id}")
        JobIndex(state).add(identity, job)
        if entry.attempts > 1 and job.state().state in OVER:  # its runner died before step 4
            return
        task = load_task(job.specification().task.reference)
        Job(
            job, task, settings=settings, stopping=stopping, reached=reached, lock=lock,
            from_queue=True,
        ).run()  # fmt: skip
    except (TidewheelError, OSError) as exc:
        reason = line_of(exc)
        job.write_state("Failed", reason, passing=may_pass(exc))
    reached("attempt-step-3")


if __name__ == "__main__":
    main()
