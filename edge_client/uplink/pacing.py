"""When events that wait in the spool are sent: the rate limit, and gathering for fewer messages.

The rate limit is a token bucket, which fills by `bytes_per_s` up to the amount of BURST_S. A
message may leave while the bucket is not empty and may overdraw it; the debt must be refilled
before the next one. So within any time at most `bytes_per_s` x (time + BURST_S) and one message
leave, whatever the size of messages.

A message costs a worker, a broker and the air about as much with one event as with thirty. A fleet
of devices with an event a second each therefore gathers: an event waits for at most `seconds`, less
if a message is full before.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from streams.contract.errors import UsageError
from streams.contract.task import Task

BURST_S = 1.0
FULL_ROWS = 512  # events: a message has no more


@dataclass
class TokenBucket:
    """A token bucket; `bytes_per_s` None means no limit. The clock is in seconds."""

    bytes_per_s: int | None
    clock: Callable[[], float]
    _left: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._left = (self.bytes_per_s or 0) * BURST_S
        self._at = self.clock()

    def allowance(self, at_most: int) -> int:
        """Return how many bytes may leave now, at most `at_most`; 0 means wait."""
        if self.bytes_per_s is None:
            return at_most
        now = self.clock()
        filled = self._left + (now - self._at) * self.bytes_per_s
        self._left, self._at = min(filled, self.bytes_per_s * BURST_S), now
        return max(0, min(at_most, int(self._left)))

    def take(self, size: int) -> None:
        self._left -= size


def check(task: Task, seconds: float) -> None:
    """Raise UsageError if workers would close the windows of a device that gathers so long."""
    if seconds > (longest := task.idle_close_s / 2):
        raise UsageError(
            f"--gather {seconds:g}: at most {longest:g}, half of idle_close_s of task "
            f"{task.name!r}: a worker closes the windows of a device that is silent for so long"
        )


class Gathering:
    """Whether unsent events wait for more. The clock is in seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.seconds, self._clock = seconds, clock
        self._since: float | None = None  # when the oldest one that is not sent was seen
        self.ended = False

    def ready(self, unsent: int) -> bool:
        """Return whether to send now, with so many events (or drops) that are not sent yet."""
        if not self.seconds or not unsent or self.ended or unsent >= FULL_ROWS:
            return True
        now = self._clock()
        if self._since is None:
            self._since = now
        return now - self._since >= self.seconds

    def emptied(self) -> None:
        """Note that all there was is sent: what comes from now on waits anew."""
        self._since = None

    def end(self) -> None:
        """Wait no more: the device ends."""
        self.ended = True
