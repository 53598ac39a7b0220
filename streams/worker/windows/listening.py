"""The time in which a partition's messages could have come. Pure.

A device is silent only while the worker would have heard it. Time in which the broker did not
answer, or had messages that the worker had not taken in yet (it was stopped, full, or busy with a
commit), says nothing about a device.
"""

from dataclasses import dataclass
from typing import Protocol

STEP_S = 3.0  # that one answer counts at most; Faust's consumer waits 1.5 s for messages


class Clock(Protocol):
    """What silence is measured with, in seconds of a partition. now_s: by the caller's clock."""

    def heard(self, partition: int, now_s: float, /) -> float:
        """Return when a message that comes now was heard."""
        ...

    def listened(self, partition: int, now_s: float, /) -> float:
        """Return up to when all messages are taken in."""
        ...


class CallersClock:
    """A clock for which messages can always come."""

    def heard(self, _partition: int, now_s: float) -> float:
        return now_s

    def listened(self, _partition: int, now_s: float) -> float:
        return now_s


@dataclass
class ListeningClock:
    """Seconds of one partition, in place of the wall clock where silence is measured.

    An answer of the broker counts, with the time since the one before, once all messages that the
    partition had then are taken in.
    """

    seconds: float = 0.0
    _counted_s: float | None = None  # up to which answer
    _answer: tuple[float, int] | None = None  # that is looked at: its time and the partition's end

    def answered(self, at_s: float, end: int, taken: int) -> None:
        """Note when the broker answered last, by any clock, the partition's end by that answer, and
        the offset up to which messages are taken in."""
        if self._answer is None:
            if self._counted_s is not None and at_s <= self._counted_s:
                return
            self._answer = at_s, end
        answered_s, end = self._answer
        if taken < end:
            return
        self.seconds = self.heard(answered_s)
        self._counted_s, self._answer = answered_s, None

    def heard(self, at_s: float) -> float:
        """Return the seconds at which a message counts that is taken in at `at_s`: as if the next
        answer, which may be the one that brought it, counted at once."""
        if self._counted_s is None:
            return self.seconds
        return self.seconds + min(max(at_s - self._counted_s, 0.0), STEP_S)
