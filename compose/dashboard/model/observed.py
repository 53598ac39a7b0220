"""What the console has observed of a task, and when: the input of every page. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from compose.dashboard.model.canary import Canary
from compose.dashboard.model.letters import Letters
from compose.dashboard.model.recent import RecentWindows
from compose.reports.lag import Lag
from compose.reports.status import Status
from streams.contract.documents import DeviceState
from streams.contract.errors import MalformedRecord
from streams.contract.topics import DEAD_LETTERS, WINDOWS, topic_name
from streams.contract.window_report import WindowReport
from streams.fleet.recent_reports import RecentReports
from streams.fleet.view import NO_AGENT, FleetView
from streams.kafka.reader import Received


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
        return f"No broker answers at {self.address}: {shown}"


@dataclass
class Beside:
    """A FleetView, and what is kept beside it of the same messages; classes: of the task."""

    view: FleetView
    recent: RecentWindows = field(default_factory=RecentWindows)
    letters: Letters = field(default_factory=Letters)
    canary: Canary = field(default_factory=Canary)
    reports: RecentReports = field(default_factory=RecentReports)
    classes: Sequence[str] = ()

    def absorb(self, message: Received) -> None:
        """Take one message in; the FleetView counts those that cannot be read."""
        self.view.absorb(message)
        self._keep(message)

    def fill(self, messages: Iterable[Received]) -> None:
        """Take in messages that the view knows already."""
        for message in messages:
            self._keep(message)

    def _keep(self, message: Received) -> None:
        if message.topic == topic_name(self.view.task, DEAD_LETTERS):
            self.letters.add(message)
        elif message.topic == topic_name(self.view.task, WINDOWS):
            try:
                report = WindowReport.decode(message.value)
            except MalformedRecord:
                return
            if self.reports.is_new(report.device, report.window_us, report.revision):
                at_us = message.time_ms * 1000 or report.end_us
                self.recent.add(report, at_us)
                self.canary.add(report, at_us)


@dataclass(frozen=True)
class Observed:
    """One moment, `now_s` of the wall clock."""

    beside: Beside
    lag: Lag = field(default_factory=Lag)
    link: Link = field(default_factory=Link)
    now_s: float = 0.0

    @property
    def view(self) -> FleetView:
        return self.beside.view

    @cached_property
    def status(self) -> Status:
        """The same moment as `tidewheel status` has it."""
        return Status(self.view, self.lag, self.as_of_s)

    @property
    def as_of_s(self) -> float:
        """The moment that everything is of: in an outage that at which the broker answered last."""
        return (self.link.since_s or self.now_s) if self.link.why else self.now_s

    @cached_property
    def conditions(self) -> dict[str, str]:
        """The one word that each device is shown with."""
        return {name: _condition(self.status, state) for name, state in self.view.everyone.items()}

    def counted(self) -> dict[str, int]:
        """Return how many devices are in each condition."""
        return dict.fromkeys(CONDITIONS, 0) | Counter(self.conditions.values())

    @property
    def pending(self) -> int:
        return sum(state.pending for state in self.view.devices.values())


CONDITIONS = ("error", "silent", "drifting", "stopped", "fine", NO_AGENT)  # the most urgent first


def _condition(status: Status, state: DeviceState) -> str:
    if status.silent(state):
        return "silent"
    if state.error:
        return "error"
    if state.phase == "stopped":
        return "stopped"
    drift = status.view.drift.get(state.device)
    if drift is not None and drift.alarm:
        return "drifting"
    return NO_AGENT if state.phase == NO_AGENT else "fine"
