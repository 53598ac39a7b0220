"""When events that wait in the spool are sent: at once, or as many together as come in some time.

A message costs a worker, a broker and the air about as much with one event as with thirty. A fleet
of devices with an event a second each therefore gathers: an event waits for at most `seconds`, less
if a message is full before.
"""

from collections.abc import Callable

from streams.contract.errors import UsageError
from streams.contract.task import Task

FULL_ROWS = 512  # events: a message has no more


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
