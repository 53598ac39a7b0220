"""One moment of what the console has observed: the input of every page. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from compose.console.history import History
from compose.reports.lag import Lag
from compose.reports.problems import Problem, Severity, Status, problems
from streams.fleet.view import CONDITIONS, Condition, FleetView
from streams.fleet.wording import NAMED


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

    @property
    def lost_us(self) -> int | None:
        """When the broker answered last, if it does not now."""
        return int(self.since_s * 1e6) if self.why and self.since_s else None


@dataclass(frozen=True)
class Moment:
    """`clock_s` of the wall clock. classes: of the task."""

    history: History
    lag: Lag = field(default_factory=Lag)
    link: Link = field(default_factory=Link)
    clock_s: float = 0.0
    classes: Sequence[str] = ()

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
    def reasons(self) -> Counter[str]:
        """The dead letters that are kept, by their reason."""
        headers = (dict(message.headers) for message in self.history.letters)
        return Counter(
            found.get("reason", b"?").decode(errors="replace")[:60]
            for found in headers
            if found.get("part", b"0/").startswith(b"0/")
        )

    @property
    def problems(self) -> list[Problem]:
        """What is wrong, the worst first."""
        more = []
        if self.link.trouble:
            severity: Severity = "critical" if self.link.why else "note"
            advice = f"{self.link.why or 'It takes a moment'}. Reconnecting automatically"
            more.append(Problem(severity, self.link.trouble, advice, "", self.link.lost_us))
        if counts := self.reasons.most_common(NAMED):
            text = "Dead letters: " + ", ".join(f"{count} {reason}" for reason, count in counts)
            more.append(Problem("note", text, "Fix the cause, then send them again", "/quality"))
        return problems(self.status, more)
