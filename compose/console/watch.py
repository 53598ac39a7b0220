"""What the console has observed at a moment, the input of every page; and the two threads that keep
it up to date: the follower of the topics, and the watch that reads the workers' lag and so finds
out whether a broker answers.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from compose.console.history import History
from compose.reports.follower import Following, Lag, read_lag
from compose.reports.problems import Problem, Severity, Status, problems
from streams.contract.errors import TidewheelError, TopicMissing, line_of
from streams.contract.task import Category, Task
from streams.fleet.following import before
from streams.fleet.view import CONDITIONS, Condition, FleetView
from streams.kafka.settings import BrokerSettings


@dataclass(frozen=True)
class Link:
    """The way to the broker. since_s: when it was last reached, wall clock; None before the first
    time. why: what is wrong; empty if nothing is. complete: the topics' past has been read.
    missing: a broker answers, and does not have the topics."""

    address: str = ""
    since_s: float | None = None
    why: str = ""
    complete: bool = True
    missing: bool = False

    @property
    def trouble(self) -> str:
        """What is wrong, for a person; empty if nothing is."""
        if not self.why:
            return "" if self.complete else "The topics' past is being read: there is little yet"
        shown = "what is shown is of an earlier moment" if self.complete else "nothing is shown yet"
        if self.missing:
            return f"The broker at {self.address} does not have the topics: {shown}"
        if "refuses" in self.why:
            return f"The broker at {self.address} refuses this client: {shown}"
        return f"No broker answers at {self.address}: {shown}"

    @property
    def lost_us(self) -> int | None:
        """When the broker answered last, if it does not now."""
        return int(self.since_s * 1e6) if self.why and self.since_s else None


@dataclass(frozen=True)
class Moment:
    """`clock_s` of the wall clock. names: what an index means, by channel; see names_of."""

    history: History
    lag: Lag = field(default_factory=Lag)
    link: Link = field(default_factory=Link)
    clock_s: float = 0.0
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def view(self) -> FleetView:
        return self.history.view

    @property
    def now_s(self) -> float:
        """The moment that everything is of: in an outage that at which the broker answered last."""
        return (self.link.since_s or self.clock_s) if self.link.why else self.clock_s

    @cached_property
    def status(self) -> Status:
        """The same moment as `tidewheel status` has it."""
        return Status(self.view, self.lag, self.now_s)

    @property
    def counts(self) -> dict[Condition, int]:
        """How many devices are in each condition."""
        return dict.fromkeys(CONDITIONS, 0) | Counter(self.status.conditions.values())

    @property
    def pending(self) -> int:
        return sum(state.pending for state in self.view.devices.values())

    @property
    def problems(self) -> list[Problem]:
        """What is wrong, the worst first."""
        more = []
        if self.link.trouble:
            severity: Severity = "critical" if self.link.why else "note"
            advice = f"{self.link.why or 'It takes a moment'}. Reconnecting automatically"
            more.append(Problem(severity, self.link.trouble, advice, "", self.link.lost_us))
        return problems(self.status, more)


def names_of(task: Task) -> dict[str, Sequence[str]]:
    """Return the names of the indices of answers and of channels of categories that have any."""
    channels = (c for c in task.channels if isinstance(c, Category) and c.names)
    return {"predictions": task.classes, **{str(c): ("unknown", *c.names) for c in channels}}


# --- the threads ----------------------------------------------------------------------------------

log = logging.getLogger(__name__)

PAST = 20_000  # reports on `windows` from before the snapshot
LOOK_S, ANSWER_S = 3.0, 3.0

T = TypeVar("T")


class Watch(threading.Thread):
    """Observes a task until `stop`."""

    def __init__(self, settings: BrokerSettings, task: Task) -> None:
        super().__init__(name="watch", daemon=True)
        self._settings, self._task = settings, task
        self._ending = threading.Event()
        self._answers: bool | None = None  # whether the broker does, as the log has it

        def make(view: FleetView) -> History:
            history = History(view)
            for report, message in before(settings, task.id, dict(view.offsets), PAST):
                history.add(report, message)
            return history

        self._follower = Following(settings, task.id, make)
        self._lag = Lag()
        self._link = Link(address=settings.bootstrap, why="it is not reached yet", complete=False)

    def look(self, make: Callable[[Moment], T]) -> T:
        """Return what `make` makes of this moment; no message is taken in meanwhile."""

        def read(history: History) -> T:
            why = self._link.why or self._follower.trouble
            link = replace(self._link, why=why, complete=self.ready)
            return make(Moment(history, self._lag, link, time.time(), names_of(self._task)))

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
            self._lag = read_lag(self._settings, self._task, ANSWER_S)
        except TidewheelError as exc:
            missing = isinstance(exc, TopicMissing)
            self._link = Link(was.address, was.since_s, line_of(exc), missing=missing)
        else:
            self._link = Link(was.address, time.time())
            self.look(_sample)
        if (answers := not self._link.why) != self._answers:
            self._answers = answers
            log.info("Kafka %s", "answers" if answers else f"is not reached: {self._link.why}")

    def stop(self) -> None:
        self._ending.set()
        self._follower.stop()
        self.join(ANSWER_S + 2)


def _sample(seen: Moment) -> None:
    if seen.link.complete:
        seen.history.sample(seen.now_s, seen.status.produced_per_s, seen.pending)
