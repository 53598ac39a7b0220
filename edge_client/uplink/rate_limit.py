"""How many bytes may leave now: a token bucket.

It fills by `bytes_per_s` up to what it gets in BURST_S. Something may leave as long as the bucket
is not empty and may take more than there is: the debt is waited off. So from any moment on at most
`bytes_per_s` x (time + BURST_S), and one message, have left, however large messages are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

BURST_S = 1.0


@dataclass
class TokenBucket:
    """`bytes_per_s` of None sets no limit. The clock is in seconds."""

    bytes_per_s: int | None
    clock: Callable[[], float]
    _left: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._left = (self.bytes_per_s or 0) * BURST_S
        self._at = self.clock()

    def allowance(self, at_most: int) -> int:
        """Bytes that may leave now, 0 when it has to be waited."""
        if self.bytes_per_s is None:
            return at_most
        now = self.clock()
        filled = self._left + (now - self._at) * self.bytes_per_s
        self._left, self._at = min(filled, self.bytes_per_s * BURST_S), now
        return max(0, min(at_most, int(self._left)))

    def take(self, size: int) -> None:
        """`size` bytes have left."""
        self._left -= size
