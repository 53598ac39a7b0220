"""When a run starts: pure, from windows and device states.

Causes, tried in this order:

    manual     a user requested it (`tidewheel train`)
    drift      the inputs of enough devices have drifted, in several consecutive reports
    agreement  the served model agrees too little with the teacher, in several consecutive checks;
               where no teacher is asked, it is wrong by true labels too often
    weak       so it does on enough single devices, which the fleet's mean may hide
    labels     devices received enough new true labels
    schedule   a stated time has passed

A lasting condition causes one run. Drift is relative to a fixed reference and persists after a
model has learned the new data, so a device's drift counts again only after a report without it. Low
agreement counts again once it was clearly above the threshold, or another model is served, or after
`again_s`, because a run may have learned too little. Any run, whoever started it, answers all
current causes.

Budgets delay a cause but do not remove it: one run at a time, `max_runs`, `runs_per_day`,
`min_interval_s`, quiet hours. A manual request is only limited by the first one. Times are
wall-clock seconds, so that budgets outlive the controller's process.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from federation.controller.quiet_hours import QuietHours
from streams.contract.documents import DeviceState, WindowReport

RECENT = 30  # reports per device that count: older windows are outdated
KNOWN = 240  # reports per device that are recognized when they are repeated
DAY_S = 86_400.0
RETRY_S = 10.0  # after a run that could not be started


@dataclass(frozen=True)
class TriggerRules:
    """A cause or budget that is None is disabled. Windows are no cause before they have
    `min_events` events of `min_devices` devices since the last release or run.

    retrain_below: an agreement, 0 to 1. patience: consecutive checks that find it too low; a check
    is due when `min_devices` devices have sent new windows. A device is weak if its agreement over
    its last `weak_windows` is below that by `weak_by`. drift_windows: consecutive reports with an
    alarm. agrees: what an answer does that counts as right, in words.
    """

    retrain_below: float
    min_events: int = 200
    min_devices: int = 2
    patience: int = 3
    hysteresis: float = 0.02
    again_s: float = 3600.0
    agrees: str = "agrees with the teacher"
    weak_windows: int = 10
    weak_by: float = 0.1
    drift_windows: int = 3
    drift_devices: int | None = 2
    new_labels: int | None = None
    schedule_s: float | None = None
    min_interval_s: float = 60.0
    max_runs: int | None = None
    runs_per_day: int | None = None
    quiet: QuietHours | None = None


@dataclass
class _Device:
    """One device's reports. recent: events of the served model, (judged, right), see
    `WindowReport.judged`."""

    recent: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=RECENT))
    known: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=KNOWN))
    alarms: int = 0  # in a row
    drift_answered: bool = False
    weak_answered: bool = False


@dataclass
class FleetEvidence:
    """What was observed of the served model since its release or the last run, and what persists.

    Windows are delivered at least once: a repeated report, identified by window and revision,
    counts once. Revisions of a window add up.
    """

    rules: TriggerRules
    served: str | None = None
    low_looks: int = 0
    events: int = 0  # judged by the teacher, or by true labels
    agreeing: int = 0
    by_labels: bool = False
    _devices: dict[str, _Device] = field(default_factory=lambda: defaultdict(_Device))
    _new: set[str] = field(default_factory=set)
    _low_answered: bool = False
    _began_s: float = 0.0  # start of the last run
    _asked: tuple[float, str] | None = None
    _labels: dict[str, int] = field(default_factory=dict)
    _labels_before: dict[str, int] = field(default_factory=dict)

    def serve(self, model: str) -> None:
        """Reset the observations if another model is served; drift concerns the inputs and
        persists."""
        if model == self.served:
            return
        self.served, self._low_answered = model, False
        for device in self._devices.values():
            device.weak_answered = False
        self._begin_anew()

    def run_began(self, at_s: float) -> None:
        """Mark all current causes as answered by a run."""
        self._low_answered |= self.is_low
        weak, drifting = self.weak, self.drifting
        for name, device in self._devices.items():
            device.weak_answered |= name in weak
            device.drift_answered |= name in drifting
        if self._asked is not None and self._asked[0] <= at_s:
            self._asked = None
        self._began_s = max(self._began_s, at_s)
        self._labels_before = dict(self._labels)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.low_looks = self.events = self.agreeing = 0
        self._new.clear()
        for device in self._devices.values():
            device.recent.clear()

    def ask(self, reason: str, at_s: float) -> None:
        """Record a manual request; ignores one that a run has answered, which is read again after a
        restart."""
        if at_s > self._began_s:
            self._asked = at_s, reason

    def add_window(self, report: WindowReport) -> None:
        device, name = self._devices[report.device], (report.window_us, report.revision)
        if name in device.known:
            return
        device.known.append(name)
        if report.drift is not None and report.drift.decided:
            device.alarms = device.alarms + 1 if report.drift.alarm else 0
            device.drift_answered &= report.drift.alarm
        judged, right = report.judged.get(self.served or "", (0, 0))
        if not judged:
            return
        self.by_labels = not report.teacher_model
        self._count(device.recent, judged, right)
        if self._is_over(device.recent, self.rules.retrain_below - self.rules.weak_by):
            device.weak_answered = False
        self._new.add(report.device)
        if len(self._new) >= self.rules.min_devices and self.is_enough:
            self._look()

    def _count(self, recent: deque[tuple[int, int]], judged: int, right: int) -> None:
        before = recent[0] if len(recent) == RECENT else (0, 0)
        recent.append((judged, right))
        self.events += judged - before[0]
        self.agreeing += right - before[1]

    def _look(self) -> None:
        self._new.clear()
        self.low_looks = self.low_looks + 1 if self.agreement < self.rules.retrain_below else 0
        if self.agreement >= self.rules.retrain_below + self.rules.hysteresis:
            self._low_answered = False

    def _is_over(self, recent: deque[tuple[int, int]], threshold: float) -> bool:
        full = len(recent) >= self.rules.weak_windows
        return full and self._share(recent) >= threshold + self.rules.hysteresis

    def _share(self, recent: deque[tuple[int, int]]) -> float:
        last = list(recent)[-self.rules.weak_windows :]
        return sum(right for _, right in last) / sum(judged for judged, _ in last)

    def add_device(self, state: DeviceState) -> None:
        self._labels[state.device] = state.labels_told
        # The count of a device that lost its labels starts again.
        before = self._labels_before.get(state.device, 0)
        self._labels_before[state.device] = min(before, state.labels_told)

    @property
    def asked(self) -> str | None:
        return None if self._asked is None else self._asked[1]

    @property
    def devices(self) -> int:
        return sum(1 for device in self._devices.values() if device.recent)

    @property
    def verb(self) -> str:
        return "is right by true labels" if self.by_labels else self.rules.agrees

    @property
    def agreement(self) -> float:
        return self.agreeing / max(self.events, 1)

    @property
    def is_enough(self) -> bool:
        """Whether the windows have enough events and devices for any cause."""
        return self.events >= self.rules.min_events and self.devices >= self.rules.min_devices

    @property
    def is_low(self) -> bool:
        return self.low_looks >= self.rules.patience

    @property
    def drifting(self) -> dict[str, int]:
        """Devices with drift that no run has answered -> consecutive alarms."""
        return {
            name: device.alarms
            for name, device in sorted(self._devices.items())
            if device.alarms >= self.rules.drift_windows and not device.drift_answered
        }

    @property
    def weak(self) -> dict[str, float]:
        """Devices with a far too low agreement -> the agreement over their last windows."""
        threshold = self.rules.retrain_below - self.rules.weak_by
        return {
            name: self._share(device.recent)
            for name, device in sorted(self._devices.items())
            if len(device.recent) >= self.rules.weak_windows
            and self._share(device.recent) < threshold
        }

    def new_weak(self, now_s: float) -> dict[str, float]:
        """Return the weak devices that no run has answered, or only long ago."""
        again = now_s - self._began_s >= self.rules.again_s
        weak = self.weak.items()
        return {name: a for name, a in weak if again or not self._devices[name].weak_answered}

    def is_newly_low(self, now_s: float) -> bool:
        again = now_s - self._began_s >= self.rules.again_s
        return self.is_low and (again or not self._low_answered)

    @property
    def new_labels(self) -> int:
        return sum(
            count - self._labels_before.get(device, 0) for device, count in self._labels.items()
        )


@dataclass(frozen=True)
class RunsSoFar:
    """The runs so far: `count` started by this controller; `starts_s` of at least those of the last
    day and the last one, in any order; `failed_s`, when one could not be started."""

    count: int = 0
    running: bool = False
    starts_s: tuple[float, ...] = ()
    failed_s: float | None = None

    @property
    def began_s(self) -> float | None:
        return max(self.starts_s, default=None)


@dataclass(frozen=True)
class TriggerDecision:
    """cause: why a run should start, for a person, None without a cause. held_back: the budget that
    forbids it now; a run starts if there is a cause and this is None."""

    cause: str | None = None
    held_back: str | None = None

    @property
    def start(self) -> bool:
        return self.cause is not None and self.held_back is None


def decide(
    rules: TriggerRules, evidence: FleetEvidence, runs: RunsSoFar, now_s: float, since_s: float
) -> TriggerDecision:
    """Return whether a run should start now.

    since_s: when the controller started, from which a schedule counts before the first run.
    """
    asked = evidence.asked
    cause = asked if asked is not None else _cause(rules, evidence, runs, now_s, since_s)
    if cause is None:
        return TriggerDecision()
    if runs.running:
        return TriggerDecision(cause, "a run is active")
    if runs.failed_s is not None and now_s - runs.failed_s < RETRY_S:
        return TriggerDecision(cause, f"the last attempt failed less than {RETRY_S:.0f} s ago")
    return TriggerDecision(cause, None if asked is not None else _budget(rules, runs, now_s))


def _cause(
    rules: TriggerRules, evidence: FleetEvidence, runs: RunsSoFar, now_s: float, since_s: float
) -> str | None:
    drifting, weak = evidence.drifting, evidence.new_weak(now_s)
    enough, moved = evidence.is_enough, len(drifting)
    if enough and rules.drift_devices is not None and moved >= rules.drift_devices:
        return (
            f"the inputs of {moved} devices drift ({_names(drifting)}), at least "
            f"{min(drifting.values())} windows in a row"
        )
    if evidence.is_newly_low(now_s):
        return (
            f"{evidence.served} {evidence.verb} on {evidence.agreement:.3f} of "
            f"{evidence.events} events from {evidence.devices} devices, "
            f"below {rules.retrain_below:.3f}"
        )
    if enough and len(weak) >= rules.min_devices:
        worst = min(weak.values())
        return (
            f"{evidence.served} {evidence.verb} on as little as {worst:.3f} on "
            f"{len(weak)} devices ({_names(weak)}), each below "
            f"{rules.retrain_below - rules.weak_by:.3f}"
        )
    if rules.new_labels is not None and evidence.new_labels >= rules.new_labels:
        return f"{evidence.new_labels} new true labels, at least {rules.new_labels}"
    last = since_s if runs.began_s is None else runs.began_s
    if rules.schedule_s is not None and now_s - last >= rules.schedule_s:
        return f"{now_s - last:.0f} s have passed, a run is due every {rules.schedule_s:.0f} s"
    return None


def _budget(rules: TriggerRules, runs: RunsSoFar, now_s: float) -> str | None:
    """Return the first exhausted budget, in words that do not change with time: it is logged
    once."""
    if rules.max_runs is not None and runs.count >= rules.max_runs:
        return f"this controller may start only {rules.max_runs} runs"
    today = sum(now_s - start < DAY_S for start in runs.starts_s)
    if rules.runs_per_day is not None and today >= rules.runs_per_day:
        return f"{today} runs began in the last 24 hours, {rules.runs_per_day} are allowed"
    if runs.began_s is not None and now_s - runs.began_s < rules.min_interval_s:
        return f"the last run began less than {rules.min_interval_s:.0f} s ago"
    local = datetime.fromtimestamp(now_s)
    if rules.quiet is not None and rules.quiet.hold(local.hour * 60 + local.minute):
        return f"quiet hours, {rules.quiet}"
    return None


def _names(devices: Iterable[str]) -> str:
    names = sorted(devices)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
