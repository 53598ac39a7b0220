"""What the topics say, summed up: the fleet, windows by model version, runs and releases.

Pure: messages go in, figures come out. `tidewheel status` fills it once, the live screen all the
time. Windows are reported at least once: a report is counted once by device, window and revision.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

from compose.reports.wording import decision_line, round_line
from streams.contract.decisions import Decision, DesiredState, Release
from streams.contract.documents import (
    DeviceState,
    DriftReport,
    ModelWindow,
    RoundEvent,
    WindowReport,
)
from streams.contract.errors import MalformedRecord
from streams.contract.topics import FLEET, RELEASES, ROUNDS, WINDOWS, topic_name
from streams.contract.window_metrics import Sums, WindowMetric, added, named, value_of
from streams.kafka.reader import Received


@dataclass
class Agreement:
    """Events of one release in closed windows. sums: `WindowReport.sums`."""

    metric: WindowMetric = "accuracy"
    windows: int = 0
    events: int = 0
    compared: int = 0
    agreeing: int = 0
    labelled: int = 0
    correct: int = 0
    by_labels: bool = False
    sums: Sums = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        """The metric that windows tell; None without a judged event."""
        return value_of(self.metric, self.sums)

    @property
    def called(self) -> str:
        return named(self.metric, by_labels=self.by_labels)

    def add(self, report: WindowReport, release: str, part: ModelWindow) -> None:
        if report.metric != self.metric:  # another task file: what was before does not add up
            self.metric, self.sums = report.metric, {}
        self.by_labels = not report.teacher_model
        self.sums = added((self.sums, report.sums(release)))
        self.windows += 1
        for name in ("events", "compared", "agreeing", "labelled", "correct"):
            setattr(self, name, getattr(self, name) + getattr(part, name))


@dataclass
class FleetView:
    """All that has been read of one task's topics."""

    task: str
    devices: dict[str, DeviceState] = field(default_factory=dict)
    epochs: dict[tuple[str, str], DeviceState] = field(default_factory=dict)  # last words of each
    agreement: dict[str, Agreement] = field(default_factory=dict)
    windows: int = 0
    windows_late: int = 0
    latest: dict[str, WindowReport] = field(default_factory=dict)  # of each device, by event time
    scored: Counter[int] = field(default_factory=Counter)  # events, by the second of their report
    decisions: dict[int, Decision] = field(default_factory=dict)  # by number
    rounds: list[RoundEvent] = field(default_factory=list)
    news: deque[str] = field(default_factory=lambda: deque(maxlen=200))
    unreadable: int = 0
    _reports: set[tuple[str, int, int]] = field(default_factory=set)

    @staticmethod
    def topics(task: str) -> list[str]:
        return [topic_name(task, name) for name in (FLEET, WINDOWS, RELEASES, ROUNDS)]

    def absorb(self, message: Received) -> None:
        """Take one message in; one that cannot be read is counted."""
        kind = message.topic.removeprefix(f"{self.task}.")
        try:
            if kind == FLEET:
                state = DeviceState.decode(message.value)
                self.devices[state.device] = state
                self.epochs[state.device, state.epoch] = state
            elif kind == WINDOWS:
                self._window(WindowReport.decode(message.value), message.time_ms // 1000)
            elif kind == RELEASES:
                self._decision(Release.decode(message.value).decision)
            elif kind == ROUNDS:
                self._round(RoundEvent.decode(message.value))
        except MalformedRecord:
            self.unreadable += 1

    def _window(self, report: WindowReport, second: int) -> None:
        identity = (report.device, report.window_us, report.revision)
        if identity in self._reports:
            return
        self._reports.add(identity)
        self.windows += report.revision == 0
        self.windows_late += report.revision > 0
        self.scored[second] += report.events
        last = self.latest.get(report.device)
        if last is None or (report.window_us, report.revision) > (last.window_us, last.revision):
            self.latest[report.device] = report
        for release, part in report.by_release.items():
            self.agreement.setdefault(release, Agreement()).add(report, release, part)

    def _decision(self, decision: Decision) -> None:
        if decision.seq not in self.decisions:
            self.news.append(decision_line(decision))
        self.decisions[decision.seq] = decision

    @property
    def standing(self) -> DesiredState:
        """What the last decision says; as it says of itself."""
        return self.decisions[max(self.decisions)].standing if self.decisions else DesiredState()

    def _round(self, event: RoundEvent) -> None:
        if event in self.rounds[-500:]:
            return  # told twice: its first acknowledgement was lost
        self.rounds.append(event)
        text = round_line(event)
        if text:
            self.news.append(text)

    @property
    def row_metric(self) -> str:
        """What the devices' running scores are measured in."""
        scores = (score for state in self.devices.values() for score in state.accuracy.values())
        return next((score.metric for score in scores), "accuracy")

    @property
    def first_model(self) -> str | None:
        """The version with the lowest number among those that devices report."""
        models = {m for state in self.devices.values() for m in state.accuracy}
        return min(models, key=model_number, default=None)

    @property
    def last_model(self) -> str | None:
        """The highest version that a device serves."""
        models = {state.active for state in self.devices.values() if state.active}
        return max(models, key=model_number, default=None)

    @property
    def drift(self) -> dict[str, DriftReport]:
        """Drift by device, as its latest report has it; devices that are not watched are not in."""
        return {name: r.drift for name, r in sorted(self.latest.items()) if r.drift is not None}

    def count(self, kind: str) -> int:
        return sum(event.kind == kind for event in self.rounds)

    @property
    def current_run(self) -> list[RoundEvent]:
        """The events of the latest run."""
        run = next((e.run for e in reversed(self.rounds) if e.run), None)
        return [e for e in self.rounds if e.run == run]


def model_number(model: str) -> int:
    """The number in a version's name, `3-1f2e3d4c`; -1 where there is none."""
    head = model.partition("-")[0]
    return int(head) if head.isdigit() else -1
