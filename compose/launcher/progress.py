"""Progress of `tidewheel up`: lines for the terminal, the phase of the loop, when it has closed,
and what it lacks; which devices are silent, and whether workers score what devices send.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.status import Status
from rich.text import Text

from streams.contract.documents import DeviceState, model_number
from streams.contract.task import Task
from streams.contract.task.metrics import retrain_limit, window_metric
from streams.contract.window_metrics import ERRORS
from streams.contract.window_metrics import named as window_name
from streams.fleet.view import FleetView
from streams.fleet.wording import counted, digits, duration, run_progress, short_runs

LINE_S = 5.0
SETTLED = ("served", "rolled-back", "dropped")  # decisions after which a version is done
SILENT_S, EACH_S = 15.0, 1.0  # a start takes three seconds, a second of CPU a device
COMPARED = 50  # held-out segments of a device, before and after
LEAST_S = 30.0  # a worker starts in that time on a machine that is not busy


class Screen:
    """Writes news as they come and the fleet's state: always on the last line of a terminal, every
    LINE_S elsewhere."""

    def __init__(self, console: Console, devices: int) -> None:
        self._console, self._devices = console, devices
        self._status = Status("", console=console)
        self._line_at, self._news_seen = 0.0, 0

    def say(self, text: str) -> None:
        """Write one line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> "Screen":
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._status.stop()

    def show(self, view: FleetView, phase: str, stalled: str = "") -> None:
        """stalled: since when nothing is scored."""
        for text in list(view.news)[self._news_seen :]:
            self.say(text)
        self.skip_news(view)
        if self._console.is_terminal:
            self._status.update(Text(self._line(view, phase, stalled)))
        elif time.monotonic() - self._line_at >= LINE_S:
            self._line_at = time.monotonic()
            self.say(self._line(view, phase, stalled))

    def skip_news(self, view: FleetView) -> None:
        """What was on the topics before this run is not news."""
        self._news_seen = len(view.news)

    def _line(self, view: FleetView, phase: str, stalled: str) -> str:
        states, rate = list(view.devices.values()), view.produced_per_s(time.time())
        parts = [
            phase,
            f"{len(states)} of {self._devices} devices",
            f"{sum(s.produced for s in states)} events ({rate:.0f}/s)",
            f"{sum(s.pending for s in states)} pending",
            counted(view.windows, "window"),
            *([stalled] if stalled else []),
        ]
        if newest := view.standing.offered or view.standing.stable:
            parts.append(f"{sum(s.active == newest.model for s in states)} serve {newest.model}")
            agreement = view.agreement.get(newest.model)
            if agreement and agreement.value is not None:
                parts.append(f"{agreement.called} {digits(agreement.value)}")
        if progress := run_progress(view.current_run):
            parts.append(f"run: {progress}")
        return "  ".join(parts)


def start_lines(devices: int, stages: str) -> str:
    """Return what is said when the fleet has started: how many devices, and how many of them a new
    version goes to, stage by stage."""
    counts = [max(1, math.ceil(float(share) * devices)) for share in stages.split(",")]
    goes_to = ", then ".join(dict.fromkeys(map(str, counts)))
    of = counted(devices, "device")
    return (f"fleet     {of}; Ctrl-C stops everything\n"
            f"rollout   a new version goes to {goes_to} of {of} (--stages)")  # fmt: skip


# --- the loop -------------------------------------------------------------------------------------


class Phase:
    """The phase of the loop: inference, federated run, canary, new model; and when it has closed.

    A run that promotes nothing leads back to inference. The loop has closed when a federated run's
    version has passed its rollout, and every device has answered with it the held-out segments that
    its first version had answered, or COMPARED of them; as many others where it has repeated none:
    a sensor's, or those of a long recording.
    """

    def __init__(self, devices: Sequence[str], began_us: int) -> None:
        self._devices, self._began_us = devices, began_us
        self._first = ""
        self.now, self.closed = "inference", False

    def look(self, view: FleetView) -> None:
        """Take the fleet as its topics show it now."""
        unheard, standing = silent(view, self._devices, self._began_us), view.standing
        heard = [view.devices[name] for name in self._devices if name not in unheard]
        self._first = self._first or min((s.active for s in heard), key=model_number, default="")
        stable = standing.stable.model if standing.stable else self._first
        passed = self._first not in ("", stable) and standing.offered is None
        serving = passed and not unheard and all(s.active == stable for s in heard)
        learning = "federated run" if self._is_learning(view) else "inference"
        self.now = "canary" if passed or standing.offered else learning
        self.now = "new model" if serving else self.now
        self.closed = serving and all(self._has_compared(s) for s in heard)

    def at_rest(self, view: FleetView) -> bool:
        """Whether all devices answer, and nothing is learned: no run, and no device's own weights,
        which all devices begin with soon after their first release."""
        states = [view.devices.get(name) for name in self._devices]
        steady = all(state is not None and state.phase == "running" for state in states)
        return steady and self.now != "federated run"

    def _has_compared(self, state: DeviceState) -> bool:
        found = state.accuracy.get(state.active)
        first = state.accuracy.get(min(state.accuracy, key=model_number, default=""))
        if found is None or first is None:
            return False
        have = found.paired if state.passes else found.held_out
        return have >= min(first.held_out, COMPARED)

    def _is_learning(self, view: FleetView) -> bool:
        """Whether a run of this launch has not ended, or has made a version that is not offered."""
        run = [event for event in view.current_run if event.time_us >= self._began_us]
        made = {event.model for event in run if event.kind == "promoted"}
        decided = {d.model for d in view.decisions.values() if d.kind in SETTLED}
        return bool(run) and (run[-1].kind != "finished" or bool(made - decided))


def why_open(view: FleetView, task: Task) -> str:
    """Return what the loop lacks to close, and what to do, for a person."""
    judged = [run for run in view.rounds if run.kind in ("promoted", "rejected")]
    if judged and all(run.kind == "rejected" for run in judged):
        return f"the gate refused {counted(len(judged), 'run')}, the last one: {judged[-1].reason}"
    back = [decision for decision in view.decided if decision.kind in ("rolled-back", "dropped")]
    standing, run = view.standing, view.current_run
    active = standing.offered or standing.candidate or (run and run[-1].kind != "finished")
    if back and not active:
        gone = counted(len(back), "candidate")
        return f"{gone} rolled back, the last one, {back[-1].model}: {back[-1].reason}"
    if standing.paused:
        return (
            "a person has paused the rollout: `tidewheel models rollout TASK resume` continues it"
        )
    if judged or run:
        return "a run or a rollout is under way: give it more time with --timeout"
    agreed = view.agreement.get(view.last_model or "")
    found = "" if agreed is None or agreed.value is None else f", now {agreed.value:.3g}"
    metric, limit = window_metric(task), f"{retrain_limit(task):g}"
    called = window_name(metric) if agreed is None else agreed.called
    side, change = ("above", "lower") if metric in ERRORS else ("below", "raise")
    return (
        f"no federated run has started: it starts where the {called} is {side} "
        f"Task.retrain = {limit}{found}: {change} it, or ask for a run with "
        "`tidewheel train`"
    )


def broken_off(view: FleetView) -> str | None:
    """Return a line about a run that the end of `up` interrupts, if there is one. What is reported
    of its devices later does not count as their failure."""
    run = view.current_run
    if not run or run[-1].kind == "finished":
        return None
    where = short_runs(f"run {run[-1].run} is interrupted in round {run[-1].round}")
    return f"drain     {where}; the next `tidewheel up` with this state folder continues it"


# --- devices and workers --------------------------------------------------------------------------


def patience_s(devices: int) -> float:
    """Return how long after the start all devices should have reported."""
    return SILENT_S + EACH_S * devices


def silent(view: FleetView, devices: Sequence[str], began_us: int) -> list[str]:
    """Return those of the devices that have reported nothing since `began_us`, wall clock."""
    heard = {state.device for state in view.devices.values() if state.time_us >= began_us}
    return [name for name in devices if name not in heard]


def stalled(view: FleetView, began_s: float, speed: float, task: Task, now_s: float) -> str:
    """Return since when no window is reported while devices answer events, for a person; "" before
    two windows of the replay have had time. Times are of the wall clock."""
    pace = speed if task.source == "recorded" else 1.0
    window_s = (task.window_us / 1e6 + task.lateness_s) / pace if pace > 0 else 0.0
    since = max(began_s, max(view.scored, default=0))
    if now_s - since < LEAST_S + 2 * window_s or not view.produced_per_s(now_s):
        return ""
    at = time.strftime("%H:%M:%S", time.localtime(since))
    return f"nothing scored since {at} ({duration(now_s - since)})"


def why_unscored(count: int, broker: str, words: str) -> str:
    """Return what becomes of events that no worker has scored, "" where there are none; broker: its
    kind; words: the worker's last line."""
    then = "They are on the broker: the next `tidewheel up` with this state folder scores them"
    if broker == "embedded":
        then = "The embedded broker keeps nothing: they are lost with it. A real Kafka keeps them"
    events = f"the worker had not scored {counted(count, 'event')} when everything ended"
    return f"{events}. {then}. worker: {words}" if count else ""


# --- the pace of a replay -------------------------------------------------------------------------

BUSY = 0.8
SETTLE_S, MEASURE_S = 8.0, 5.0
SLOWEST = 1 / 8  # of the first speed


def read_busy() -> Callable[[], float]:
    """Return a function that gives the share of all cores that was busy since its last call."""
    import psutil

    psutil.cpu_percent(None)
    return lambda: float(psutil.cpu_percent(None)) / 100


@dataclass(frozen=True)
class Finding:
    """What was measured, in a line for the user; `speed` is the new one, None to keep it."""

    text: str
    speed: float | None


class Pace:
    """How fast a replay runs on this machine: slower where its cores have no time left to learn.

    While nothing is learned the cores are to be busy for at most BUSY of the time; a fleet that
    needs more leaves trainers too little. The share is measured over MEASURE_S, all programs of the
    machine included, from SETTLE_S after the machine is at rest. Two measurements above BUSY halve
    the speed, down to an eighth of the first one; two below half of it double the speed again, up
    to the first one. A speed that the user has named stays, and the finding is said. `fixed`: the
    user has named it. `clock` in seconds.
    """

    def __init__(
        self,
        speed: float,
        busy: Callable[[], float],
        *,
        fixed: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._speed, self._first, self._least = speed, speed, speed * SLOWEST
        self._busy, self._fixed, self._clock = busy, fixed, clock
        self._look_at: float | None = None
        self._over = self._under = 0  # measurements above BUSY and below half of it, in a row
        self._said = False  # that nothing more can be done

    def look(self, *, at_rest: bool) -> Finding | None:
        """Return what is to be said and done; call it often. at_rest: all devices answer, and none
        learns."""
        now = self._clock()
        if not at_rest or self._speed <= 0:
            self._look_at, self._over, self._under = None, 0, 0
            return None
        if self._look_at is None or now < self._look_at:
            if self._look_at is None:
                self._look_at = now + SETTLE_S
                self._busy()
            return None
        self._look_at, busy = now + MEASURE_S, self._busy()
        self._over = self._over + 1 if busy > BUSY else 0
        self._under = self._under + 1 if busy < BUSY / 2 else 0
        if self._over >= 2:
            return self._slower(busy)
        return self._faster(busy) if self._under >= 2 and self._speed < self._first else None

    def _slower(self, busy: float) -> Finding | None:
        about = f"the cores are {busy:.0%} busy with nothing being learned"
        if self._fixed or self._speed <= self._least:
            if self._said:
                return None
            self._said = True
            what = "--speed" if self._fixed else "the slowest replay"
            advice = "a lower --speed" if self._fixed else "fewer --devices"
            return Finding(f"{about} ({what} {self._speed:g}): rounds take longer; {advice}", None)
        return self._change(f"{about}: the replay slows down", max(self._speed / 2, self._least))

    def _faster(self, busy: float) -> Finding:
        text = f"the cores are {busy:.0%} busy: the replay speeds up"
        return self._change(text, min(self._speed * 2, self._first))

    def _change(self, text: str, speed: float) -> Finding:
        before, self._speed = self._speed, speed
        self._look_at, self._over, self._under = self._clock() + SETTLE_S, 0, 0
        return Finding(f"{text} from {before:g} to {speed:g} times real time", speed)
