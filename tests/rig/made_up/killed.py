"""A process that is killed at a failpoint, in the process of the test."""

from streams.runtime.failpoints import Failpoint


class Killed(BaseException):
    """The process ends here."""


def killed_at(point: str, time: int = 1) -> Failpoint:
    """A failpoint that ends the process when `point` is reached for the `time`-th time."""
    left = time

    def reached(name: str) -> None:
        nonlocal left
        left -= name == point
        if name == point and left == 0:
            raise Killed

    return reached
