"""What the broker refuses for good, and what is sent in its place.

1. a message of several events that is refused is sent again as messages of half as many; so are
   those after it, until PROBE_S have passed without a refusal
2. an event that is refused alone is declared dropped in its place, with the reason
3. the frame is settled when the broker has the declaration: the event counts as dropped

Nothing of it is on disk. After a crash the event is sent, refused and declared again; the worker
knows a declaration that comes twice.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

from edge_client.spool.frames import Declared, Frame

ROWS = 512  # of a message
PROBE_S = 60.0

log = logging.getLogger(__name__)


class Refusals:
    """How many events a message may have, and which ones are declared. The clock is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rows, self._at = ROWS, 0.0
        self._reasons: dict[int, str] = {}  # by seq, until the frame is settled

    @property
    def rows(self) -> int:
        """The most events of a message now."""
        if self._rows < ROWS and self._clock() - self._at >= PROBE_S:
            self._rows, self._at = min(ROWS, 2 * self._rows), self._clock()
        return self._rows

    def note(self, first: int, last: int, reason: str) -> None:
        """Note that a message of the events first..last was refused."""
        self._at = self._clock()
        if first == last:
            self._reasons[first] = reason
        else:
            self._rows = min(self._rows, (last - first + 1) // 2)

    def among(self, frames: Sequence[Frame]) -> list[Declared]:
        """Return the events of frames that are declared in place of being sent."""
        return [
            Declared(seq, seq, reason)
            for seq, reason in sorted(self._reasons.items())
            if any(frame.first <= seq < frame.first + frame.count for frame in frames)
        ]

    def runs(self, frames: Sequence[Frame]) -> Iterator[tuple[int, int, str | None]]:
        """Yield the events of consecutive frames as messages: first, last, and why they are
        declared; None for those that are sent."""
        at, end = frames[0].first, frames[-1].first + frames[-1].count
        for declared in [*self.among(frames), Declared(end, end, "")]:
            while at < declared.first:
                last = min(at + self._rows, declared.first) - 1
                yield at, last, None
                at = last + 1
            if at < end:
                yield declared
                at += 1

    def settle(self, frames: Sequence[Frame]) -> list[Declared]:
        """Forget the declared events of frames whose messages the broker has, and return them."""
        found = self.among(frames)
        for declared in found:
            del self._reasons[declared.first]
        return found
