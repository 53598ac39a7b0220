"""What the topics say, summed up: the fleet, windows by model version, runs and releases.

Pure: messages go in, figures come out. Status, timeline, console, `up` and the controller read it,
and what "silent" means stands here alone. Its size depends on the fleet, not on how long it has
run: of windows sums are kept, of runs the newest RUN_EVENTS, of decisions DECISIONS, of a device's
ended epochs EPOCHS, of versions VERSIONS. Windows are reported at least once: a report is counted
once (SeenReports).
"""

from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, get_args

from streams.contract.decisions import Decision, DesiredState, Release, rollout_position
from streams.contract.documents import DeviceState, RoundEvent, model_number
from streams.contract.errors import MalformedRecord
from streams.contract.topics import DEAD_LETTERS, FLEET, RELEASES, ROUNDS, WINDOWS
from streams.contract.window_report import DriftReport, WindowReport
from streams.fleet.agreement import Agreement, Evidence, SeenReports
from streams.fleet.refused import LETTERS, Refused
from streams.fleet.timeline import Timeline
from streams.fleet.truth import Truth, Worse
from streams.fleet.wording import counted, counted_as, decision_line, round_line
from streams.kafka.reader import Received

RUN_EVENTS, DECISIONS, VERSIONS, EPOCHS = 4000, 2000, 200, 8
SILENT_S = 30.0  # a device that has missed its heartbeats is silent after so long at least
RATE_S = 60  # for which events are known by the second in which they were reported
OF_A_DEVICE = ("admitted", "refused", "failed")
NO_AGENT: Literal["no agent"] = "no agent"  # the phase of a producer
Condition = Literal["error", "silent", "drifting", "stopped", "fine", "no agent"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)  # the most urgent first
Taken = DeviceState | WindowReport | Decision | RoundEvent


@dataclass
class FleetView:
    """All that has been read of one task's topics.

    producers: devices that have no agent, but events in windows; what is known of them in the form
    of a state. ended: the last states of a device's earlier epochs, the newest last. scored: events
    by the second of their report. drift: by device, as its latest report has it, with the worst
    channel alone and no histogram. truth: what labels say by device and release. evidence: of the
    controller, whose snapshots alone have it. counts: all decisions by kind, and events of runs
    as `counted_as` has them. offsets: the next ones to read, by topic and partition. unseen:
    reports that were never read, by reason: "deleted", "many". slot: of the last snapshot.
    """

    task: str
    devices: dict[str, DeviceState] = field(default_factory=dict)
    producers: dict[str, DeviceState] = field(default_factory=dict)
    ended: dict[str, list[DeviceState]] = field(default_factory=dict)
    agreement: dict[str, Agreement] = field(default_factory=dict)
    windows: int = 0
    windows_late: int = 0
    drift: dict[str, DriftReport] = field(default_factory=dict)
    truth: Truth = field(default_factory=Truth)
    evidence: Evidence = field(default_factory=Evidence)
    scored: Counter[int] = field(default_factory=Counter)
    decisions: dict[int, Decision] = field(default_factory=dict)  # by number
    rounds: list[RoundEvent] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    timeline: Timeline = field(default_factory=Timeline)
    reports: SeenReports = field(default_factory=SeenReports)
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    unreadable: int = 0
    unseen: Counter[str] = field(default_factory=Counter)
    slot: int = 0

    def __post_init__(self) -> None:
        self.news: deque[str] = deque(maxlen=200)  # lines for a person, in no snapshot
        self.refused: deque[Refused] = deque(maxlen=LETTERS)  # likewise; the last ones

    def absorb(self, message: Received) -> Taken | None:
        """Take one message in; return what it says, None where that comes again. One that cannot be
        read is counted."""
        with suppress(MalformedRecord):
            return self.take(message)
        return None

    def take(self, message: Received) -> Taken | None:
        """As `absorb`; raise MalformedRecord for a message that cannot be read."""
        kind = message.topic.removeprefix(f"{self.task}.")
        self.offsets[kind, message.partition] = message.offset + 1
        try:
            if kind == FLEET and message.value is not None:
                return self.hear(DeviceState.decode(message.value))
            if kind == FLEET:
                self.forget((message.key or b"").decode(errors="replace"))
            if kind == WINDOWS:
                return self._window(WindowReport.decode(message.value), message)
            if kind == RELEASES:
                return self.decide(Release.decode(message.value).decision)
            if kind == ROUNDS:
                return self.learn(RoundEvent.decode(message.value))
            if kind == DEAD_LETTERS and (refused := Refused.of(message)) is not None:
                self.refused.append(refused)
        except MalformedRecord:
            self.unreadable += 1
            raise
        return None

    def hear(self, state: DeviceState) -> DeviceState:
        """Take a device's state in."""
        before = self.devices.get(state.device)
        if before is not None and before.epoch != state.epoch:
            self.ended[state.device] = [*self.ended.get(state.device, []), before][-EPOCHS:]
        self.devices[state.device] = state
        self.producers.pop(state.device, None)
        self.timeline.device(state)
        return state

    def forget(self, device: str) -> None:
        """Leave a device out until it is heard again; windows and what happened stay."""
        for kept in (self.devices, self.producers, self.ended, self.drift):
            kept.pop(device, None)
        self.truth.forget(device)

    def _window(self, report: WindowReport, message: Received) -> WindowReport | None:
        if not self.reports.is_new(report):
            return None
        at_us = message.time_ms * 1000 or report.end_us
        for release, part in report.by_release.items():
            self.agreement.setdefault(release, Agreement()).add(report, part)
        if len(self.agreement) > VERSIONS:
            del self.agreement[next(iter(self.agreement))]
        self.timeline.window(at_us, report)
        labels = self.truth.add(report)
        for worse in self.truth.worse([report.device]) if labels else ():
            self.timeline.worse(at_us, worse)
        if report.events:
            self._events(report, message.time_ms // 1000, at_us)
        return report

    def _events(self, report: WindowReport, second: int, at_us: int) -> None:
        """Take in what only a report of events says, not one of labels alone."""
        self.windows += report.revision == 0
        self.windows_late += report.revision > 0
        self._count(second, report.events)
        if report.device not in self.devices:
            self._producer(report, at_us)
        if self.timeline.latest[report.device] == (report.window_us, report.revision):
            self._drift(report.device, report.drift)

    def _producer(self, report: WindowReport, at_us: int) -> None:
        """Its events are known once they are scored."""
        before = self.producers.get(report.device)
        scored = report.events + (before.produced if before else 0)
        last_us = max(min(at_us, report.end_us), before.time_us if before else 0)
        self.producers[report.device] = DeviceState(
            device=report.device, task=self.task, time_us=last_us, epoch="",
            active=max(parts := report.by_release, key=lambda n: parts[n].events, default=""),
            produced=scored, delivered=scored, pending=0, phase=NO_AGENT,
        )  # fmt: skip

    @property
    def everyone(self) -> dict[str, DeviceState]:
        """All devices, with an agent or without."""
        return {**self.devices, **self.producers}

    @property
    def epochs(self) -> dict[tuple[str, str], DeviceState]:
        """The last words of each epoch, by device and epoch, the current one included."""
        earlier = [state for name in self.devices for state in self.ended.get(name, [])]
        return {(s.device, s.epoch): s for s in (*earlier, *self.devices.values())}

    def is_silent(self, state: DeviceState, now_s: float) -> bool:
        """Return whether a device that has not stopped is not heard of; now_s: wall clock. One
        without an agent has nothing to say."""
        waits_s = now_s - state.time_us / 1e6
        listening = state.phase not in ("stopped", NO_AGENT)
        return listening and waits_s > max(SILENT_S, state.missed_after_s)

    def present(self, now_s: float) -> list[DeviceState]:
        """Return the devices that take part: with an agent, not silent and not stopped."""
        states = self.devices.values()
        return [s for s in states if s.phase != "stopped" and not self.is_silent(s, now_s)]

    def produced_per_s(self, now_s: float) -> float:
        """Return how many events the devices that are present answer a second, as they say."""
        return sum(state.events_per_s for state in self.present(now_s))

    def scored_per_s(self, now_s: float) -> float:
        """Return how many events were scored a second, over the last RATE_S."""
        since = now_s - RATE_S
        return sum(n for second, n in self.scored.items() if second >= since) / RATE_S

    def condition(self, state: DeviceState, now_s: float) -> Condition:
        """Return the one word that a device is shown with."""
        if self.is_silent(state, now_s):
            return "silent"
        if state.error:
            return "error"
        if state.phase == "stopped":
            return "stopped"
        if (drift := self.drift.get(state.device)) and drift.alarm:
            return "drifting"
        return NO_AGENT if state.phase == NO_AGENT else "fine"

    def _drift(self, device: str, drift: DriftReport | None) -> None:
        if drift is None:
            self.drift.pop(device, None)
            return
        worst = [c for c in drift.channels if c.channel == drift.worst]
        self.drift[device] = drift.replace(channels=worst, histograms=[])

    def _count(self, second: int, events: int) -> None:
        self.scored[second] += events
        if len(self.scored) > 2 * RATE_S:
            since = max(self.scored) - RATE_S
            self.scored = Counter({s: n for s, n in self.scored.items() if s >= since})

    def decide(self, decision: Decision) -> Decision | None:
        """Take a decision in; return None for one that comes again."""
        if self.decisions.get(decision.seq) == decision:
            return None
        if decision.seq not in self.decisions:
            self.news.append(decision_line(decision))
            self.counts[f"decision:{decision.kind}"] += 1
        self.decisions[decision.seq] = decision
        if len(self.decisions) > DECISIONS:
            del self.decisions[min(self.decisions)]
        self.timeline.decision(decision)
        self.truth.decide(decision)
        return decision

    @property
    def decided(self) -> list[Decision]:
        """All decisions in their order."""
        return [self.decisions[seq] for seq in sorted(self.decisions)]

    @property
    def standing(self) -> DesiredState:
        """What the last decision says; as it says of itself."""
        return self.decisions[max(self.decisions)].standing if self.decisions else DesiredState()

    @property
    def offered_count(self) -> int:
        """The number of devices that the offered version goes to."""
        return len(self.within(self.standing.share))

    @property
    def canary(self) -> Evidence:
        """The evidence about the version on offer."""
        offered = self.standing.offered
        known = offered is not None and offered.model == self.evidence.version
        return self.evidence if known else Evidence()

    def within(self, share: float) -> list[DeviceState]:
        """Return the devices of this first share of the fleet."""
        return [s for s in self.devices.values() if rollout_position(self.task, s.device) < share]

    @property
    def offered_to(self) -> str:
        """That number for a person: `2 of 5 devices`."""
        return f"{self.offered_count:,} of {counted(len(self.devices), 'device')}"

    def learn(self, event: RoundEvent) -> RoundEvent | None:
        """Take a step of a run in; return None for one that comes again."""
        last = self.rounds[-500:]
        if any(each.time_us == event.time_us and each == event for each in last):
            return None  # published twice: its first acknowledgement was lost
        self.rounds.append(event)
        self.counts[counted_as(event)] += 1
        self.timeline.run(event)
        if text := round_line(event):
            self.news.append(text)
        if len(self.rounds) > RUN_EVENTS:
            self._forget()
        return event

    def _forget(self) -> None:
        """Of the older half keep what is said of whole runs, at most a quarter of RUN_EVENTS."""
        at = len(self.rounds) // 2
        old = [e for e in self.rounds[:at] if not (e.kind in OF_A_DEVICE and e.device)]
        self.rounds = old[-RUN_EVENTS // 4 :] + self.rounds[at:]

    @property
    def worse(self) -> list[Worse]:
        """The devices that the release which they serve made worse, by their labels."""
        served = {name: state.active for name, state in self.everyone.items()}
        return [each for each in self.truth.worse() if served.get(each.device) == each.after]

    @property
    def latest_agreement(self) -> Agreement:
        """What windows tell of the release that came last, and how that is called."""
        return next(reversed(self.agreement.values()), Agreement())

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
        models = (state.active for state in self.devices.values() if state.active)
        return max(models, key=model_number, default=None)

    def count(self, kind: str) -> int:
        return sum(n for name, n in self.counts.items() if name.partition(":")[0] == kind)

    @property
    def last_finished(self) -> RoundEvent | None:
        """The end of the run that ended last; None before the first."""
        return next((e for e in reversed(self.rounds) if e.kind == "finished"), None)

    @property
    def current_run(self) -> list[RoundEvent]:
        """The events of the latest run."""
        run = next((e.run for e in reversed(self.rounds) if e.run), None)
        return [e for e in self.rounds if e.run == run]
