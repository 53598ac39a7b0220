"""Waiting for a condition without keeping a core busy."""

import time
from collections.abc import Callable


def until(
    condition: Callable[[], object], what: str, timeout_s: float = 60.0, pause_s: float = 0.05
) -> None:
    """Wait for a condition; fail with `what` when it does not come.

    A condition that costs CPU, such as a query over a store, is asked more seldom: at most a
    quarter of a core is spent on questions, which the processes that are waited for need.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        begun = time.process_time()
        if condition():
            return
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(max(pause_s, 3 * (time.process_time() - begun)))
