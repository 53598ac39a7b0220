"""Whether the workers score what the devices send, and what becomes of the rest. Pure."""

import time
from collections.abc import Callable

from streams.contract.task import Task
from streams.fleet.view import FleetView
from streams.fleet.wording import counted, duration

LEAST_S = 30.0  # a worker starts in that time on a machine that is not busy


def patience_s(task: Task, speed: float) -> float:
    """Return how long no window may be reported while devices send: two windows of the replay."""
    pace = speed if task.source == "recorded" else 1.0
    return LEAST_S + (2 * (task.window_s + task.lateness_s) / pace if pace > 0 else 0.0)


class ScoringWatch:
    """Finds out that devices deliver events and no window is reported. `clock` in seconds, `wall`
    since 1970."""

    def __init__(
        self,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._patience_s, self._clock, self._wall = patience_s, clock, wall
        self._windows, self._delivered = -1, 0
        self._since, self._since_s = clock(), wall()

    def look(self, view: FleetView) -> str:
        """Return since when nothing is scored, for a person; "" while windows are reported, or
        nothing is there to score."""
        windows = view.windows + view.windows_late
        delivered = sum(state.delivered for state in view.devices.values())
        if windows != self._windows:
            self._windows, self._delivered = windows, delivered
            self._since, self._since_s = self._clock(), self._wall()
        age_s = self._clock() - self._since
        if age_s < self._patience_s or delivered <= self._delivered:
            return ""
        at = time.strftime("%H:%M:%S", time.localtime(self._since_s))
        return f"nothing scored since {at} ({duration(age_s)})"


class DrainClock:
    """Says how long to wait for the workers at the end: `limit_s` since they last scored
    something."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock = limit_s, clock
        self._least: int | None = None
        self._deadline = clock() + limit_s

    def goes_on(self, unscored: int) -> bool:
        if self._least is None or unscored < self._least:
            self._least, self._deadline = unscored, self._clock() + self._limit_s
        return self._clock() < self._deadline


def why_unscored(count: int, broker: str, words: str) -> str:
    """Return what becomes of events that no worker has scored, "" where there are none; broker: its
    kind; words: the worker's last line."""
    if not count:
        return ""
    events = counted(count, "event")
    if broker == "embedded":
        then = "The embedded broker keeps nothing: they are lost with it. A real Kafka keeps them"
    else:
        then = "They are on the broker: the next `tidewheel up` with this state folder scores them"
    return f"the worker had not scored {events} when everything ended. {then}. worker: {words}"
