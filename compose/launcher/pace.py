"""How fast a replay runs on this machine: slower where its cores have no time left for learning.

While nothing is learned the cores are to be busy for at most BUSY of the time; a fleet that needs
more leaves trainers too little. The share is measured over MEASURE_S, all programs of the machine
included, from SETTLE_S after the devices were heard. Two measurements above BUSY halve the speed,
down to an eighth of the first one. A speed that the user has named stays, and the finding is said.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

BUSY = 0.8
SETTLE_S, MEASURE_S = 8.0, 5.0
SLOWEST = 1 / 8  # of the first speed


def read_busy() -> Callable[[], float]:
    """Return a function that gives the share of all cores that was busy since its last call."""
    import psutil

    psutil.cpu_percent(None)
    return lambda: float(psutil.cpu_percent(None)) / 100


@dataclass(frozen=True)
class Finding:
    """What was measured, in a line for the user; `speed` is the new one, None to keep it."""

    text: str
    speed: float | None


class Pace:
    """`fixed`: the user has named the speed. `clock` in seconds."""

    def __init__(
        self,
        speed: float,
        busy: Callable[[], float],
        *,
        fixed: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._speed, self._least = speed, speed * SLOWEST
        self._busy, self._fixed, self._clock = busy, fixed, clock
        self._look_at: float | None = None
        self._over = 0  # measurements above BUSY, in a row
        self._said = False  # that nothing more can be done

    def look(self, *, at_rest: bool) -> Finding | None:
        """Return what is to be said and done; call it often. at_rest: all devices answer and
        nothing is learned."""
        now = self._clock()
        if not at_rest or self._said or self._speed <= 0:
            self._look_at, self._over = None, 0
            return None
        if self._look_at is None or now < self._look_at:
            if self._look_at is None:
                self._look_at = now + SETTLE_S
                self._busy()
            return None
        self._look_at, busy = now + MEASURE_S, self._busy()
        self._over = self._over + 1 if busy > BUSY else 0
        return self._finding(busy) if self._over >= 2 else None

    def _finding(self, busy: float) -> Finding:
        about = f"the cores are {busy:.0%} busy with nothing being learned"
        if self._fixed or self._speed <= self._least:
            self._said = True
            what = "--speed" if self._fixed else "the slowest replay"
            advice = "a lower --speed" if self._fixed else "fewer --devices"
            return Finding(f"{about} ({what} {self._speed:g}): rounds take longer; {advice}", None)
        before, self._speed = self._speed, max(self._speed / 2, self._least)
        self._look_at, self._over = self._clock() + SETTLE_S, 0
        text = f"{about}: the replay slows down from {before:g} to {self._speed:g} times real time"
        return Finding(text, self._speed)
