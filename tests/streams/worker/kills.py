"""A worker that is killed while events come."""

import signal
from collections.abc import Callable

from tests.rig.processes.forks import Forked
from tests.rig.processes.workers import Fleet, until


def until_killed(served: Fleet, worker: Forked, send: Callable[[], None]) -> None:
    """Send, and wait for a commit, until the worker has come to its failpoint."""
    for _ in range(60):
        if worker.poll() is not None:
            break
        before = served.count()
        send()
        until(
            lambda before=before: worker.poll() is not None or served.count() > before,  # type: ignore[misc]
            "a commit, or the death",
        )
    assert worker.returncode == -signal.SIGKILL
