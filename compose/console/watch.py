"""The two threads that keep what the console shows up to date: the follower of the topics, and the
watch that reads the workers' lag and so finds out whether a broker answers."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from compose.console.history import History
from compose.console.moment import Link, Moment
from compose.reports.follower import Following
from compose.reports.lag import Lag, read_lag
from streams.contract.errors import TidewheelError, TopicMissing
from streams.contract.task import Task
from streams.contract.topics import DEAD_LETTERS, FLEET, RELEASES, ROUNDS, WINDOWS
from streams.fleet.following import before, last_snapshot
from streams.fleet.view import FleetView
from streams.kafka.settings import BrokerSettings

log = logging.getLogger(__name__)

TOPICS = (FLEET, WINDOWS, RELEASES, ROUNDS, DEAD_LETTERS)
PAST = 20_000  # reports on `windows` from before the snapshot
LOOK_S, ANSWER_S = 3.0, 3.0
EVIDENCE_S = 15.0  # as often as the controller publishes it

T = TypeVar("T")


class Watch(threading.Thread):
    """Observes a task until `stop`."""

    def __init__(
        self,
        settings: BrokerSettings,
        task: Task,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._settings, self._task, self._clock = settings, task, clock
        self._ending = threading.Event()
        self._evidence_at = 0.0
        self._answers: bool | None = None  # whether the broker does, as the log has it

        def make(view: FleetView) -> History:
            history = History(view)
            if view.offsets:
                history.fill(before(settings, task.id, dict(view.offsets), PAST))
            return history

        self._follower = Following(settings, task.id, make, TOPICS)
        self._lag = Lag()
        self._link = Link(address=settings.bootstrap, why="it is not reached yet", complete=False)

    def look(self, make: Callable[[Moment], T]) -> T:
        """Return what `make` makes of this moment; no message is taken in meanwhile."""

        def read(history: History) -> T:
            why = self._link.why or self._follower.trouble
            link = replace(self._link, why=why, complete=self.ready)
            return make(Moment(history, self._lag, link, self._clock(), self._task.classes))

        return self._follower.read(read)

    @property
    def ready(self) -> bool:
        """Whether the topics' past has been read."""
        return self._follower.caught_up.is_set()

    def run(self) -> None:
        self._follower.start()
        while not self._ending.is_set():
            self._look()
            self._ending.wait(LOOK_S)

    def _look(self) -> None:
        was = self._link
        try:
            self._lag = read_lag(self._settings, self._task.id, ANSWER_S)
            self._read_evidence()
        except TidewheelError as exc:
            missing = isinstance(exc, TopicMissing)
            self._link = Link(was.address, was.since_s, _first(exc), missing=missing)
        else:
            self._link = Link(was.address, self._clock())
            self.look(_sample)
        if (answers := not self._link.why) != self._answers:
            self._answers = answers
            log.info("Kafka %s", "answers" if answers else f"is not reached: {self._link.why}")

    def _read_evidence(self) -> None:
        """Take over the controller's evidence about a canary, of its newest snapshot."""
        if time.monotonic() < self._evidence_at:
            return
        self._evidence_at = time.monotonic() + EVIDENCE_S
        if (found := last_snapshot(self._settings, self._task.id, ANSWER_S)) is not None:
            self.look(lambda seen: setattr(seen.view, "evidence", found.evidence))

    def stop(self) -> None:
        self._ending.set()
        self._follower.stop()
        self.join(ANSWER_S + 2)


def _sample(seen: Moment) -> None:
    if seen.link.complete:
        seen.history.sample(seen.now_s, seen.status.produced_per_s, seen.pending)


def _first(exc: Exception) -> str:
    """The error's first line, for a page."""
    text = str(exc).splitlines()
    return text[0][:300] if text else type(exc).__name__
