"""The rate limit of what waits in the spool.

It is a token bucket, which fills by `bytes_per_s` up to the amount of BURST_S. A message may leave
while the bucket is not empty and may overdraw it; the debt must be refilled before the next one. So
within any time at most `bytes_per_s` x (time + BURST_S) and one message leave, whatever the size of
messages.
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
