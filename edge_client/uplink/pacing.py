"""When something leaves the device: the rate limit of what waits in the spool, and when the device
says how it is.

The limit is a token bucket, which fills by `bytes_per_s` up to the amount of BURST_S. A message may
leave while the bucket is not empty and may overdraw it; the debt must be refilled before the next
one. So within any time at most `bytes_per_s` x (time + BURST_S) and one message leave, whatever the
size of messages.

A heartbeat is sent at once where something has changed, otherwise now and then. Counters and
figures change with every event and are no change here; what a person would want to know at once is,
and so is the first event that is dropped or skipped for a reason. While the device works for a
round, and shortly afterwards, a message comes every second, so that the round learns soon when the
device falls silent.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

BURST_S = 1.0


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


# --- heartbeats -----------------------------------------------------------------------------------

LOOK_S = 1.0  # between two looks at the news
EVERY_S = 10.0  # between two messages where there are none
AT_WORK_S = 1.0  # the same while the device works for a round
AFTER_WORK_S = 10.0  # and for so long afterwards: silence is judged by what others report meanwhile


class Heartbeat:
    """Times in seconds, by the caller's clock."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._usual_s = self._every_s = every_s
        self._pause_s = 0.0
        self._look_at = self._beat_at = 0.0
        self._work_until = float("-inf")
        self._told = object()  # as nothing else

    @property
    def interval_s(self) -> float:
        """After so long at most there is another message."""
        return max(self._every_s, self._pause_s)

    def looks(self, now_s: float) -> bool:
        """Return whether it is time to look at the state."""
        if now_s < self._look_at:
            return False
        self._look_at = now_s + LOOK_S
        return True

    def due(self, news: object, now_s: float) -> bool:
        """Return whether the state is to be sent now."""
        before_s = self._every_s
        working = now_s < self._work_until
        self._every_s = min(self._usual_s, AT_WORK_S) if working else self._usual_s
        if (news, self._every_s) == (self._told, before_s) and now_s < self._beat_at:
            return False
        self._told, self._beat_at = news, now_s + self._every_s
        return True

    def work(self) -> None:
        """Send every AT_WORK_S from now on."""
        self._work_until = float("inf")

    def rest(self, now_s: float) -> None:
        """Send as usual again, AFTER_WORK_S from now."""
        self._work_until = now_s + AFTER_WORK_S

    def pause(self, now_s: float, pause_s: float) -> None:
        """Send nothing for so long, also if something changes."""
        self._pause_s = pause_s
        self._look_at = now_s + max(LOOK_S, pause_s)

    def at_once(self) -> None:
        """Send the next state whatever it is."""
        self._told, self._look_at = object(), float("-inf")
