"""Failpoints in the process of the test: what happens there, or that the process is killed."""

from collections.abc import Callable
from itertools import count

from streams.runtime.failpoints import Failpoint


class Killed(BaseException):
    """The process ends here."""


def once_at(point: str, act: Callable[[], object], time: int = 1) -> Failpoint:
    """A failpoint that acts when `point` is reached for the `time`-th time."""
    seen = count(1)

    def reached(name: str) -> None:
        if name == point and next(seen) == time:
            act()

    return reached


def killed_at(point: str, time: int = 1) -> Failpoint:
    """A failpoint that ends the process when `point` is reached for the `time`-th time."""

    def kill() -> None:
        raise Killed

    return once_at(point, kill, time)
