"""Waiting for a condition without keeping a core busy."""

import os
import time
from collections.abc import Callable

MOST_S = 1.0  # between two questions, where a process of more CPU has ended meanwhile
# A busy machine may take so many times as long as the one on which the deadlines were chosen.
SLOWEST = int(os.environ.get("TIDEWHEEL_TESTS_SLOWEST", "3"))


def until(
    condition: Callable[[], object], what: str, timeout_s: float = 60.0, pause_s: float = 0.05
) -> None:
    """Wait for a condition; fail with `what` when it does not come in SLOWEST times `timeout_s`.

    A condition that costs CPU, such as a query over a store or a command, is asked more seldom: at
    most a quarter of a core is spent on questions, which the processes that are waited for need.
    """
    timeout_s *= SLOWEST
    deadline = time.monotonic() + timeout_s
    while True:
        begun = _spent()
        if condition():
            return
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(max(pause_s, min(MOST_S, 3 * (_spent() - begun))))


def _spent() -> float:
    """CPU seconds of this process and of its children that have ended."""
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system
