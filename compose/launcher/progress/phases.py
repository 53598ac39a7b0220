"""Where the loop is, when it has closed, and which devices have reported nothing since their start.
Pure.
"""

import time
from collections.abc import Callable, Sequence

from streams.contract.documents import DeviceState
from streams.contract.task import Task
from streams.contract.task.metrics import retrain_limit, window_metric
from streams.contract.window_metrics import ERRORS
from streams.contract.window_metrics import named as window_name
from streams.fleet.view import FleetView, model_number
from streams.fleet.wording import counted, short_runs

SETTLED = ("served", "rolled-back", "dropped")  # decisions after which a version is done

SILENT_S = 15.0  # a start takes three seconds
EACH_S = 1.0  # of CPU, and all start at once


def why_open(view: FleetView, task: Task) -> str:
    """Return what the loop lacks to close, and what to do, for a person."""
    judged = [run for run in view.rounds if run.kind in ("promoted", "rejected")]
    if judged and all(run.kind == "rejected" for run in judged):
        return f"the gate refused {counted(len(judged), 'run')}, the last one: {judged[-1].reason}"
    back = [d for d in view.decisions.values() if d.kind in ("rolled-back", "dropped")]
    standing, run = view.standing, view.current_run
    going_on = standing.offered or standing.candidate or (run and run[-1].kind != "finished")
    if back and not going_on:
        last = max(back, key=lambda decision: decision.seq)
        gone = counted(len(back), "candidate")
        return f"{gone} rolled back, the last one, {last.model}: {last.reason}"
    if standing.paused:
        return "a person has paused the rollout; `tidewheel models resume` continues it"
    if judged or run:
        return "a run or a rollout is under way: give it more time with --timeout"
    agreed = view.agreement.get(view.last_model or "")
    found = "" if agreed is None or agreed.value is None else f", now {agreed.value:.3g}"
    metric, limit = window_metric(task), f"{retrain_limit(task):g}"
    called = window_name(metric, by_labels=task.upload == "prediction")
    side, change = ("above", "lower") if metric in ERRORS else ("below", "raise")
    return (
        f"no federated run has started: it starts where the {called} is {side} "
        f"Task.retrain = {limit}{found}: {change} it, or ask for a run with "
        "`tidewheel train`"
    )


def broken_off(view: FleetView) -> str | None:
    """Return a line about a run that the end of everything breaks off, if there is one. What is
    said of its devices later is no failure of theirs."""
    run = view.current_run
    if not run or run[-1].kind == "finished":
        return None
    where = short_runs(f"run {run[-1].run} is interrupted in round {run[-1].round}")
    return f"drain     {where}; the next `tidewheel up` with this state folder continues it"


class PhaseClock:
    """The phase of the loop: inference, federated run, canary, new model; and when it has closed.

    A run that promotes nothing leads back to inference. The loop has closed when a federated run's
    version has passed its rollout, and every device has answered with it the held-out segments that
    its first version had answered; `live`: as many, because a sensor does not repeat them. `clock`
    in seconds.
    """

    def __init__(
        self,
        devices: list[str],
        began_us: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        live: bool = False,
    ) -> None:
        self._devices = devices
        self._began_us = began_us
        self._clock = clock
        self._live = live
        self._entered = [("inference", clock())]
        self._first: str | None = None
        self.closed = False

    @property
    def now(self) -> str:
        return self._entered[-1][0]

    def look(self, view: FleetView) -> None:
        """Take the fleet as its topics show it now."""
        states = [
            s
            for name in self._devices
            if (s := view.devices.get(name)) and s.time_us >= self._began_us
        ]
        if self._first is None and states:
            self._first = min((s.active for s in states), key=model_number)
        standing = view.standing
        running = self._running(view)
        if self.now == "inference" and running:
            self._enter("federated run")
        elif self.now == "federated run" and standing.offered is not None:
            self._enter("canary")
        elif self.now == "federated run" and not running and standing.candidate is None:
            self._enter("inference")
        stable = standing.stable.model if standing.stable else self._first
        if self.now == "canary" and standing.offered is None and stable == self._first:
            self._enter("inference")  # rolled back
        if len(states) < len(self._devices) or stable == self._first or standing.offered:
            return
        if self.now != "new model" and all(s.active == stable for s in states):
            self._enter("new model")
        self.closed = all(self._has_compared(s, stable) for s in states)

    def _has_compared(self, state: DeviceState, stable: str | None) -> bool:
        found = state.accuracy.get(stable or "")
        if found is None or state.active != stable:
            return False
        first = state.accuracy[min(state.accuracy, key=model_number)]
        return (found.held_out if self._live else found.paired) >= first.held_out

    def _running(self, view: FleetView) -> bool:
        """Whether a run of this launch goes on, or has made a version that is not offered yet."""
        run = [event for event in view.current_run if event.time_us >= self._began_us]
        if not run or run[-1].kind != "finished":
            return bool(run)
        made = {e.model for e in run if e.kind == "promoted"}
        decided = {d.model for d in view.decisions.values() if d.kind in SETTLED}
        return bool(made - decided) and view.standing.offered is None

    def _enter(self, phase: str) -> None:
        self._entered.append((phase, self._clock()))

    def seconds(self) -> dict[str, float]:
        """How long each phase has taken in all."""
        ends = [*(at for _, at in self._entered[1:]), self._clock()]
        found: dict[str, float] = {}
        for (name, at), end in zip(self._entered, ends, strict=True):
            found[name] = found.get(name, 0.0) + end - at
        return found


def silent(view: FleetView, devices: Sequence[str], began_us: int) -> list[str]:
    """Return those of the devices that have reported nothing since `began_us`, wall clock."""
    return [
        name
        for name in devices
        if (state := view.devices.get(name)) is None or state.time_us < began_us
    ]


class SilenceWatch:
    """Finds the devices that are silent when all should have reported, once."""

    def __init__(self, devices: Sequence[str], began_us: int) -> None:
        self._devices, self._began_us = devices, began_us
        self._done = False

    @property
    def patience_s(self) -> float:
        """How long after the start all devices should have reported."""
        return SILENT_S + EACH_S * len(self._devices)

    def look(self, view: FleetView, elapsed_s: float) -> list[str]:
        """Return the silent devices the first time that `patience_s` is over, else none."""
        if self._done or elapsed_s < self.patience_s:
            return []
        self._done = True
        return silent(view, self._devices, self._began_us)
