"""When the fleet is to learn: pure, from what the windows and the devices say.

Three causes, tried in this order: the served model agrees too little with the teacher, the devices
have been told enough new true labels, or a stated time has passed. None counts while a run is
going on, sooner than `min_interval_s` after the last one began, or after `max_runs`.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field

from streams.contract.documents import DeviceState, WindowReport

RECENT = 30  # reports per device that count: older windows say little of today


@dataclass(frozen=True)
class Rules:
    """`retrain_below` is an agreement, 0 to 1; a cause that is None is never one."""

    retrain_below: float
    min_events: int = 200
    min_devices: int = 2
    min_interval_s: float = 60.0
    new_labels: int | None = None
    schedule_s: float | None = None
    max_runs: int | None = None


@dataclass
class Evidence:
    """What was seen since the served model was released or the last run began.

    Windows come at least once: a report that comes again, known by its window and revision, counts
    once. Revisions of a window sum.
    """

    served: str | None = None
    _windows: dict[str, deque[tuple[tuple[int, int], int, int]]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=RECENT))
    )
    _labels: dict[str, int] = field(default_factory=dict)
    _labels_before: dict[str, int] = field(default_factory=dict)

    def serve(self, model: str) -> None:
        """Another model is served: what was seen of the previous one says nothing of it."""
        if model != self.served:
            self.served = model
            self._windows.clear()

    def run_began(self) -> None:
        """What caused a run must not cause the next one."""
        self._windows.clear()
        self._labels_before = dict(self._labels)

    def add_window(self, report: WindowReport) -> None:
        share = report.by_release.get(self.served or "")
        if share is None or not share.compared:
            return
        seen, name = self._windows[report.device], (report.window_us, report.revision)
        if all(name != other for other, _, _ in seen):
            seen.append((name, share.compared, share.agreeing))

    def add_device(self, state: DeviceState) -> None:
        self._labels[state.device] = state.labels_told
        # A device that lost its labels starts anew.
        before = self._labels_before.get(state.device, 0)
        self._labels_before[state.device] = min(before, state.labels_told)

    @property
    def devices(self) -> int:
        return sum(1 for seen in self._windows.values() if seen)

    @property
    def events(self) -> int:
        """Those that the teacher has scored."""
        return sum(events for seen in self._windows.values() for _, events, _ in seen)

    @property
    def agreement(self) -> float:
        agreeing = sum(agreeing for seen in self._windows.values() for _, _, agreeing in seen)
        return agreeing / max(self.events, 1)

    @property
    def new_labels(self) -> int:
        return sum(
            count - self._labels_before.get(device, 0) for device, count in self._labels.items()
        )


@dataclass(frozen=True)
class RunsSoFar:
    """What the controller knows of runs: `began_s` is when the last one did, on its clock."""

    count: int = 0
    running: bool = False
    began_s: float | None = None


def reason_to_run(
    rules: Rules, evidence: Evidence, runs: RunsSoFar, now_s: float, since_s: float
) -> str | None:
    """Why a run should start now, for a person; None when it should not.

    since_s: when the controller began to watch, from which a schedule counts before the first run.
    """
    if runs.running or (rules.max_runs is not None and runs.count >= rules.max_runs):
        return None
    if runs.began_s is not None and now_s - runs.began_s < rules.min_interval_s:
        return None
    if (
        evidence.events >= rules.min_events
        and evidence.devices >= rules.min_devices
        and evidence.agreement < rules.retrain_below
    ):
        return (
            f"{evidence.served} agrees with the teacher on {evidence.agreement:.3f} of "
            f"{evidence.events} events from {evidence.devices} devices, "
            f"below {rules.retrain_below:.3f}"
        )
    if rules.new_labels is not None and evidence.new_labels >= rules.new_labels:
        return f"{evidence.new_labels} new true labels, {rules.new_labels} are enough"
    last = since_s if runs.began_s is None else runs.began_s
    if rules.schedule_s is not None and now_s - last >= rules.schedule_s:
        return f"{now_s - last:.0f} s have passed, a run is due every {rules.schedule_s:.0f} s"
    return None
