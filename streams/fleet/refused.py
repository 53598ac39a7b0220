"""What a worker refused: messages on `dead-letters`, by their reason and device."""

from typing import NamedTuple

from streams.kafka.reader import Received

LETTERS = 200  # the last ones that a view knows


class Refused(NamedTuple):
    """time_us: when it was refused, by the wall clock; device: "" for a message without a key."""

    time_us: int
    reason: str
    device: str

    @classmethod
    def of(cls, message: Received) -> "Refused | None":
        """Return what a message says; None for the second and later parts of a letter."""
        headers = dict(message.headers)
        if not headers.get("part", b"0/").startswith(b"0/"):
            return None
        reason = headers.get("reason", b"?").decode(errors="replace")[:60]
        device = (message.key or b"").decode(errors="replace")[:60]
        return cls(message.time_ms * 1000, reason, device)
