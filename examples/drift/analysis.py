"""What a fleet's topics show of people whose phones are remounted at some time. Pure.

Seconds are wall time from the first closed window of a remounted phone; windows are
those that such a phone has closed since then, the mean of several phones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from streams.contract.decisions import Decision
from streams.contract.errors import MalformedRecord
from streams.contract.topics import WINDOWS, topic_name
from streams.contract.window_report import WindowReport
from streams.fleet.view import FleetView
from streams.kafka.reader import Received


@dataclass(frozen=True)
class AnsweredWindow:
    """Events of some windows: shares are None where there are none."""

    windows: int = 0
    compared: int = 0
    agreeing: int = 0
    labelled: int = 0
    correct: int = 0

    @property
    def agreement(self) -> float | None:
        return self.agreeing / self.compared if self.compared else None

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.labelled if self.labelled else None


@dataclass(frozen=True)
class HeldOutAnswers:
    """Answers on segments that their devices hold out from training. A segment counts once each
    time that its recording is replayed: devices know a segment by its event time."""

    of: int = 0
    correct: int = 0

    def __sub__(self, other: "HeldOutAnswers") -> "HeldOutAnswers":
        return HeldOutAnswers(self.of - other.of, self.correct - other.correct)

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.of if self.of else None


@dataclass(frozen=True)
class Moment:
    """Something that happened: seconds and windows since the phones were remounted."""

    what: str
    seconds: float
    windows: float


@dataclass
class Recovery:
    """`worn` are the people; `after_us` of event time a device's first recording ends."""

    task: str
    worn: Sequence[str]
    after_us: int
    view: FleetView = field(init=False)
    _reports: dict[tuple[str, int, int], tuple[float, WindowReport]] = field(default_factory=dict)
    _origin_us: dict[str, int] = field(default_factory=dict)  # of each device's event time

    def __post_init__(self) -> None:
        self.view = FleetView(self.task)

    def take(self, message: Received) -> None:
        self.view.absorb(message)
        if message.topic == topic_name(self.task, WINDOWS):
            try:
                report = WindowReport.decode(message.value)
            except MalformedRecord:
                return
            name = report.device, report.window_us, report.revision
            self._reports.setdefault(name, (message.time_ms / 1000, report))
            before_us = self._origin_us.get(report.device, report.window_us)
            self._origin_us[report.device] = min(before_us, report.window_us)

    # --- what was answered ----------------------------------------------------------------------

    def before(self) -> AnsweredWindow:
        """Those people's, the phone as in the lab."""
        return self._answered([r for _, r in self._of(self.worn) if not self._otherwise(r)])

    def otherwise(self) -> AnsweredWindow:
        """Those people with remounted phones, answered by what is served as it is."""
        found = [r for _, r in self._of(self.worn) if self._otherwise(r) and not _is_adapted(r)]
        return self._answered(found)

    def adapted(self, devices: Sequence[str], last: int) -> AnsweredWindow:
        """The last windows of each of these people, but for those that were not answered behind an
        input adapter alone, or not with a remounted phone."""
        found = []
        for device in devices:
            reports = sorted((r for _, r in self._of([device])), key=lambda r: r.window_us)
            found += [r for r in reports[-last:] if self._otherwise(r) and _is_adapted(r)]
        return self._answered(found)

    def held_out(self) -> HeldOutAnswers:
        """Those people's held-out segments answered so far, by all versions."""
        known = [
            score
            for device in self.worn
            if device in self.view.devices
            for score in self.view.devices[device].accuracy.values()
        ]
        return HeldOutAnswers(
            sum(score.held_out for score in known), sum(score.held_out_correct for score in known)
        )

    def windows_by(self, model: str, device: str) -> int:
        return sum(model in r.by_release for _, r in self._of([device]))

    @staticmethod
    def _answered(reports: Sequence[WindowReport]) -> AnsweredWindow:
        parts = [part for report in reports for part in report.models.values()]
        names = ("compared", "agreeing", "labelled", "correct")
        sums = (sum(int(getattr(part, name)) for part in parts) for name in names)
        return AnsweredWindow(len(reports), *sums)

    # --- when things happened -------------------------------------------------------------------

    @property
    def began_s(self) -> float | None:
        """When the first window closed of a remounted phone."""
        times = [at for at, r in self._of(self.worn) if self._otherwise(r)]
        return min(times, default=None)

    def alarm_s(self) -> float | None:
        """When the inputs of one of those phones were first found to have drifted."""
        found = [
            at
            for at, r in self._of(self.worn)
            if self._otherwise(r) and r.drift is not None and r.drift.alarm
        ]
        return min(found, default=None)

    def decided(self, kind: str, after: int = 0) -> Decision | None:
        """The first decision of this kind with a number above `after`, but for the very first."""
        found = (d for n, d in sorted(self.view.decisions.items()) if n > max(after, 1))
        return next((d for d in found if d.kind == kind), None)

    def moment(self, what: str, at_s: float) -> Moment:
        began_s = self.began_s if self.began_s is not None else at_s
        since = [at for at, r in self._of(self.worn) if self._otherwise(r) and at <= at_s]
        return Moment(what, at_s - began_s, len(since) / max(len(self.worn), 1))

    def moments(self) -> Iterator[Moment]:
        """The alarm, the runs and the decisions, in their order."""
        found: list[tuple[float, str]] = []
        alarm_s = self.alarm_s()
        if alarm_s is not None:
            found.append((alarm_s, "the first alarm: inputs have drifted"))
        for event in self.view.rounds:
            if event.kind in ("requested", "promoted", "rejected"):
                model = f" {event.model}" if event.model else ""
                found.append((event.time_us / 1e6, f"run {event.kind}{model}: {event.reason}"))
        for decision in self.view.decisions.values():
            if decision.kind not in ("keys", "teacher") and decision.seq > 1:
                text = f"{decision.kind} {decision.model}: {decision.reason}"
                found.append((decision.time_us / 1e6, text))
        for at_s, what in sorted(found):
            yield self.moment(what, at_s)

    def _of(self, devices: Sequence[str]) -> list[tuple[float, WindowReport]]:
        return [found for (device, *_), found in self._reports.items() if device in devices]

    def _otherwise(self, report: WindowReport) -> bool:
        return report.window_us >= self._origin_us[report.device] + self.after_us


def _is_adapted(report: WindowReport) -> bool:
    return bool(report.models) and all(".a" in model for model in report.models)
