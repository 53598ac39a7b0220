"""Ctrl-C and SIGTERM for a command that has things to take down, and the end of the process that
started this one.

While it makes something ready a signal breaks that off where it stands, by an exception. Python
swallows an exception that is raised while a destructor or a weak reference's callback runs, so
whoever gets on with something asks `check` at each step. Once `patient`, a signal sets flags alone.

A handler runs on the main thread wherever that is, perhaps with a lock in its hands: what takes the
same lock, such as `set` of the event that the thread waits for, would never return (`by_thread`).
"""

import _thread
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


def by_thread(act: Callable[[], object]) -> Callable[[int, object], None]:
    """Return a signal's handler that has another thread call `act`, which may take locks."""

    def handle(_number: int, _frame: object) -> None:
        _thread.start_new_thread(act, ())  # threading.Thread takes locks itself

    return handle


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM while something is being made ready."""


class Interrupts:
    """Handles the two signals inside its `with`. `stop` is set soon after the first one; `seen`
    counts."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.seen = 0
        self.patient = False

    def check(self) -> None:
        """Interrupted where a signal has come that nobody has heard."""
        if self.seen and not self.patient:
            raise Interrupted

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {n: signal.signal(n, self._handle) for n in numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.seen += 1
        by_thread(self.stop.set)(number, frame)
        if self.seen == 1 and not self.patient:
            raise Interrupted


PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> bool:
    """Let this process be killed when its parent ends (Linux); return False if that has ended."""
    if sys.platform != "linux":
        return True
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent
