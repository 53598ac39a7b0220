"""The process of one attempt, `python -m compose.cli.batch.attempt`, which `jobs run` starts.

It answers with one line of JSON on its standard output. What the task or a library prints goes to
standard error.
"""

import argparse
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path

from streams.contract.errors import TidewheelError
from streams.runtime.processes import end_with_parent


def command(state: Path, identity: str, fence: int, lease_s: float, tries: int,
            pause_s: float) -> list[str]:  # fmt: skip
    """Return the command line of an attempt."""
    numbers = [f"--fence={fence}", f"--lease={lease_s}", f"--tries={tries}", f"--pause={pause_s}"]
    parent = f"--parent={os.getpid()}"
    module = [sys.executable, "-m", "compose.cli.batch.attempt"]
    return [*module, str(state.absolute()), identity, parent, *numbers]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("id")
    parser.add_argument("--parent", type=int)
    parser.add_argument("--fence", type=int)
    parser.add_argument("--lease", type=float)
    parser.add_argument("--tries", type=int)
    parser.add_argument("--pause", type=float)
    given = parser.parse_args()
    if not end_with_parent(given.parent):
        return
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    from compose.cli.batch.queued_job import run_queued, submit_scheduled
    from streams.batch.queue.attempt import Attempt
    from streams.batch.queue.job_queue import JobQueue
    from streams.batch.queue.outcome import Retrying
    from streams.runtime.failpoints import read_failpoint

    reached = read_failpoint(os.environ)
    attempt = Attempt(
        JobQueue(given.state),
        given.id,
        given.fence,
        submit=partial(submit_scheduled, given.state, reached),
        run=partial(run_queued, given.state, stop.is_set, reached),
        lease_s=given.lease,
        retrying=Retrying(given.tries, given.pause),
        reached=reached,
    )
    try:
        found = attempt.work()
    except TidewheelError as exc:  # the queue itself: the runner sees that this process has ended
        sys.exit(f"tidewheel: {exc}")
    if found is not None:
        answers.write(found.encode().decode() + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
