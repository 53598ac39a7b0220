"""What windows and devices' states tell the triggers. Pure.

A window may be revised; what it tells is summed over the device's last windows with the served
model. See `federation.controller.triggers` for what follows from it.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from streams.contract.window_metrics import (
    ERRORS,
    Judgement,
    WindowMetric,
    events_in,
    is_better,
    is_worse,
    named,
    value_of,
)
from streams.contract.window_report import WindowReport

RECENT = 30  # windows per device that count: older ones are outdated
HYSTERESIS = 0.02  # by which the metric must be within its limit to count again


@dataclass(frozen=True)
class TriggerRules:
    """A cause or budget that is None is disabled. Windows are no cause before they have
    `min_events` events of `min_devices` devices since the last release or run.

    limit: of `metric`, beyond which answers are too bad. patience: consecutive checks that find it
    so; a check is due when `min_devices` devices have sent new windows. A device is weak if its
    last `weak_windows` are beyond the limit by `weak_by`: of a share a difference, of an error a
    share of the limit. drift_windows: consecutive reports with an alarm, in which devices may have
    fitted an adapter: a run that comes before it learns the drift.
    """

    limit: float
    metric: WindowMetric = "accuracy"
    min_events: int = 200
    min_devices: int = 2
    patience: int = 3
    again_s: float = 3600.0
    weak_windows: int = 10
    drift_windows: int = 8
    schedule_s: float | None = None
    min_interval_s: float = 60.0
    runs_per_day: int | None = None

    @property
    def weak_by(self) -> float:
        return 0.5 if self.metric in ERRORS else 0.1

    @property
    def weak_limit(self) -> float:
        if self.metric in ERRORS:
            return self.limit * (1 + self.weak_by)
        return self.limit - self.weak_by


class Weak(NamedTuple):
    """A device's metric over its last windows, and whether true labels judge them."""

    value: float
    by_labels: bool


@dataclass
class _Device:
    """One device's reports. recent: what they say of the served model, by window, the one that was
    reported last at the end."""

    recent: dict[int, Judgement] = field(default_factory=dict)
    alarms: int = 0  # in a row
    drift_answered: bool = False
    weak_answered: bool = False


@dataclass
class FleetEvidence:
    """What was observed of the served model since its release or the last run, and what persists.

    Revisions of a window add up; labels of a window that no longer counts stand beside the last
    ones. A window costs the same in every fleet: devices that are weak or drift are noted as their
    windows come.

    weak: devices whose metric is far beyond the limit -> their last windows;
    drifting: those with drift that no run has answered -> consecutive alarms; devices: with windows
    that count; fleet: how many devices there are.
    """

    rules: TriggerRules
    served: str | None = None
    bad_looks: int = 0
    total: Judgement = field(default_factory=Judgement)
    weak: dict[str, Weak] = field(default_factory=dict)
    drifting: dict[str, int] = field(default_factory=dict)
    devices: int = 0
    fleet: int = 0
    _devices: dict[str, _Device] = field(default_factory=lambda: defaultdict(_Device))
    _new: set[str] = field(default_factory=set)
    _bad_answered: bool = False
    _began_s: float = 0.0  # start of the last run
    _asked: tuple[float, str] | None = None

    def serve(self, model: str) -> None:
        """Reset the observations if another model is served; drift concerns the inputs and
        persists."""
        if model == self.served:
            return
        self.served, self._bad_answered = model, False
        for device in self._devices.values():
            device.weak_answered = False
        self._begin_anew()

    def run_began(self, at_s: float) -> None:
        """Mark all current causes as answered by a run."""
        self._bad_answered |= self.is_bad
        for name in self.weak:
            self._devices[name].weak_answered = True
        for name in self.drifting:
            self._devices[name].drift_answered = True
        self.drifting.clear()
        if self._asked is not None and self._asked[0] <= at_s:
            self._asked = None
        self._began_s = max(self._began_s, at_s)
        self._begin_anew()

    def run_undone(self) -> None:
        """Count all causes again: nothing of the last run is served."""
        self._bad_answered = False
        for device in self._devices.values():
            device.weak_answered = device.drift_answered = False

    def _begin_anew(self) -> None:
        self.bad_looks = 0
        self.total = Judgement()
        self._new.clear()
        self.weak.clear()
        self.devices = 0
        for device in self._devices.values():
            device.recent.clear()

    def ask(self, reason: str, at_s: float) -> None:
        """Record a manual request; ignores one that a run has answered, which is read again after a
        restart."""
        if at_s > self._began_s:
            self._asked = at_s, reason

    def add_window(self, report: WindowReport) -> None:
        """Add a report that comes for the first time."""
        device = self._devices[report.device]
        if report.drift is not None and report.drift.decided:
            device.alarms = device.alarms + 1 if report.drift.alarm else 0
            device.drift_answered &= report.drift.alarm
            self._note_drift(report.device, device)
        told = report.judgement(self.served or "")
        if not told or report.metric != self.rules.metric:
            return
        self.devices += not device.recent
        self._count(device.recent, report.window_us, told)
        self._note_weak(report.device, device)
        self._new.add(report.device)
        if len(self._new) >= self.rules.min_devices and self.is_enough:
            self._look()

    def _count(self, recent: dict[int, Judgement], window_us: int, told: Judgement) -> None:
        recent[window_us] = recent.pop(window_us, Judgement()) + told
        self.total += told
        if len(recent) > RECENT:
            self.total += -recent.pop(next(iter(recent)))

    def _look(self) -> None:
        rules = self.rules
        self._new.clear()
        bad = is_worse(rules.metric, self.value, rules.limit)
        self.bad_looks = self.bad_looks + 1 if bad else 0
        if is_better(rules.metric, self.value, rules.limit, HYSTERESIS):
            self._bad_answered = False

    def _note_drift(self, name: str, device: _Device) -> None:
        self.drifting.pop(name, None)
        if device.alarms >= self.rules.drift_windows and not device.drift_answered:
            self.drifting[name] = device.alarms

    def _note_weak(self, name: str, device: _Device) -> None:
        """Note whether a device is weak, or clearly not weak any more."""
        rules = self.rules
        self.weak.pop(name, None)
        if len(device.recent) < rules.weak_windows:
            return
        last = sum(list(device.recent.values())[-rules.weak_windows :], Judgement())
        value = value_of(rules.metric, last.sums) or 0.0
        if is_worse(rules.metric, value, rules.limit, rules.weak_by):
            self.weak[name] = Weak(value, last.by_labels)
        if is_better(rules.metric, value, rules.limit, HYSTERESIS - rules.weak_by):
            device.weak_answered = False

    @property
    def asked(self) -> str | None:
        return None if self._asked is None else self._asked[1]

    @property
    def called(self) -> str:
        return named(self.rules.metric, by_labels=self.total.by_labels)

    @property
    def events(self) -> int:
        """Judged by the teacher, or by true labels."""
        return int(events_in(self.total.sums))

    @property
    def value(self) -> float:
        """The served model's metric; 0 without an event."""
        return value_of(self.rules.metric, self.total.sums) or 0.0

    @property
    def is_enough(self) -> bool:
        """Whether the windows have enough events and devices for any cause."""
        return self.events >= self.rules.min_events and self.devices >= self.rules.min_devices

    @property
    def is_soon_bad(self) -> bool:
        """Whether a quarter of the events that a cause needs finds the metric beyond its limit."""
        rules, enough = self.rules, 4 * self.events >= self.rules.min_events
        bad = is_worse(rules.metric, self.value, rules.limit) and not self._bad_answered
        return bad and enough and self.devices >= rules.min_devices

    @property
    def is_bad(self) -> bool:
        return self.bad_looks >= self.rules.patience

    def new_weak(self, now_s: float) -> dict[str, Weak]:
        """Return the weak devices that no run has answered, or only long ago."""
        again = now_s - self._began_s >= self.rules.again_s
        weak = self.weak.items()
        return {name: a for name, a in weak if again or not self._devices[name].weak_answered}

    def is_newly_bad(self, now_s: float) -> bool:
        again = now_s - self._began_s >= self.rules.again_s
        return self.is_bad and (again or not self._bad_answered)
