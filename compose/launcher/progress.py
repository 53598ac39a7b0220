"""Progress of `tidewheel up`: lines for the terminal, the phase of the loop, when it has closed,
and what it lacks; whether workers score what devices send; and how fast a replay runs.

Views are those of one run: of its devices, as far as they have reported since it began.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from rich.console import Console
from rich.status import Status as StatusLine
from rich.text import Text

from compose.reports.problems import Status, problems
from streams.contract.decisions import MANUAL, SIGNED_AGAIN
from streams.contract.documents import DeviceState, model_number
from streams.contract.task import Task
from streams.contract.task.metrics import retrain_limit, window_metric
from streams.contract.window_metrics import ERRORS, named
from streams.fleet.view import FleetView
from streams.fleet.wording import counted, digits, duration, run_progress, short_runs

LINE_S = 5.0
SETTLED = ("served", "rolled-back", "dropped")  # decisions after which a version is done
COMPARED = 50  # held-out segments of a device, before and after
LEAST_S = 30.0  # a worker starts in that time on a machine that is not busy


class Screen:
    """Writes news as they come and the fleet's state: always on the last line of a terminal, every
    LINE_S elsewhere."""

    def __init__(self, console: Console, devices: int) -> None:
        self._console, self._devices = console, devices
        self._status = StatusLine("", console=console)
        self._line_at = 0.0

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
        while view.news:
            self.say(view.news.popleft())
        if self._console.is_terminal:
            self._status.update(Text(self._line(view, phase, stalled)))
        elif time.monotonic() - self._line_at >= LINE_S:
            self._line_at = time.monotonic()
            self.say(self._line(view, phase, stalled))

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
            if words := view.canary.words:
                parts.append(words)
            elif agreement and agreement.value is not None:
                parts.append(f"{agreement.called} {digits(agreement.value)}")
        if progress := run_progress(view.current_run):
            parts.append(f"run: {progress}")
        return "  ".join(parts)


# --- the loop -------------------------------------------------------------------------------------


def of_run(view: FleetView, devices: Sequence[str], began_us: int) -> FleetView:
    """Return the view of a run: what its devices have reported since it began, wall clock."""
    heard = {name: state for name, state in view.devices.items()
             if name in devices and state.time_us >= began_us}  # fmt: skip
    ended = {n: [s for s in states if s.time_us >= began_us] for n, states in view.ended.items()}
    found = replace(view, devices=heard, ended=ended)
    found.news = view.news
    return found


class Phase:
    """The phase of the loop (inference, federated run, canary, new model; or manual promotion,
    rollback and new key, until all devices serve that version), when it has closed, and whether it
    is at rest: all devices answer, and nothing is learned.

    A run that promotes nothing leads back to inference. The loop has closed when a federated run's
    version has passed its rollout, and every device has answered with it the held-out segments that
    its first version had answered, or COMPARED of them; as many others where it has repeated none:
    a sensor's, or those of a long recording.
    """

    def __init__(self, devices: int, began_us: int) -> None:
        self._devices, self._began_us = devices, began_us
        self._first = ""
        self.now, self.closed, self.at_rest = "inference", False, False

    def look(self, view: FleetView) -> None:
        """Take the fleet as its topics show it now."""
        states, standing = view.devices.values(), view.standing
        self._first = self._first or min((s.active for s in states), key=model_number, default="")
        for before, now in pairwise(view.decided):
            had = before.standing.stable
            if now.reason.startswith(SIGNED_AGAIN) and had and had.model == self._first:
                self._first = now.model or ""
        stable = standing.stable.model if standing.stable else self._first
        passed = self._first not in ("", stable) and standing.offered is None
        answering = len(states) == self._devices and all(s.active == stable for s in states)
        learning = "federated run" if self._is_learning(view) else "inference"
        if passed:
            self.now = "new model" if answering else _change(view)
        else:
            self.now = "canary" if standing.offered else learning
        self.closed = self.now == "new model" and all(map(_has_compared, states))
        running = [state for state in states if state.phase == "running"]
        self.at_rest = len(running) == self._devices and self.now != "federated run"

    def _is_learning(self, view: FleetView) -> bool:
        """Whether a run of this launch has not ended, or has made a version that is not offered."""
        run = [event for event in view.current_run if event.time_us >= self._began_us]
        made = {event.model for event in run if event.kind == "promoted"}
        decided = {d.model for d in view.decisions.values() if d.kind in SETTLED}
        return bool(run) and (run[-1].kind != "finished" or bool(made - decided))


def _change(view: FleetView) -> str:
    """Return by what the stable version came."""
    last = next((d for d in view.decided[::-1] if d.kind in ("served", "rolled-back")), None)
    if last is None or last.kind == "rolled-back":
        return "canary" if last is None else "rollback"
    names = {MANUAL: "manual promotion", SIGNED_AGAIN: "new key"}
    return next((name for why, name in names.items() if last.reason.startswith(why)), "canary")


def _has_compared(state: DeviceState) -> bool:
    found = state.accuracy.get(state.active)
    first = state.accuracy.get(min(state.accuracy, key=model_number, default=""))
    if found is None or first is None:
        return False
    have = found.paired if state.passes else found.held_out
    return have >= min(first.held_out, COMPARED)


def why_open(status: Status, task: Task) -> str:
    """Return what the loop lacks to close, and what to do, for a person."""
    view, standing, run = status.view, status.view.standing, status.view.current_run
    offered = standing.candidate or (standing.offered and not standing.paused)
    if not offered and not (run and run[-1].kind not in ("rejected", "finished")):
        for problem in problems(status):
            if problem.page in ("/releases", "/learning"):
                return problem.line
    if offered or run:
        return "a run or a rollout is under way: give it more time with --timeout"
    agreed, metric = view.agreement.get(view.last_model or ""), window_metric(task)
    value = None if agreed is None else agreed.value
    now = "" if value is None else f", now {value:.3g}"
    called = named(metric) if agreed is None else agreed.called
    side, change = ("above", "lower") if metric in ERRORS else ("below", "raise")
    return (
        f"no federated run has started: it starts where the {called} is {side} Task.retrain = "
        f"{retrain_limit(task):g}{now}: {change} it, or ask for a run with `tidewheel train`"
    )


def interrupted(view: FleetView) -> str:
    """Return a line about a run that the end of `up` interrupts; "" where there is none."""
    if run_progress(view.current_run) is None:
        return ""
    last = view.current_run[-1]
    where = short_runs(f"run {last.run} is interrupted in round {last.round}")
    return f"drain     {where}; the next `tidewheel up` with this state folder continues it"


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


# --- the pace of a replay -------------------------------------------------------------------------

BUSY = 0.8
SETTLE_S, MEASURE_S = 8.0, 5.0
SLOWEST = 1 / 8  # of the first speed


def read_busy() -> Callable[[], float]:
    """Return a function that gives the share of all cores that was busy since its last call."""
    import psutil

    psutil.cpu_percent(None)
    return lambda: float(psutil.cpu_percent(None)) / 100


class Finding(NamedTuple):
    """What was measured, in a line for the user; `speed` is the new one, None to keep it."""

    text: str
    speed: float | None = None


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
        self._speed, self._first = speed, speed
        self._busy, self._fixed, self._clock = busy, fixed, clock
        self._look_at: float | None = None
        self._last: list[float] = []  # two measurements
        self._said = False  # that nothing more can be done

    def look(self, *, at_rest: bool) -> Finding | None:
        """Return what is to be said and done; call it often. at_rest: all devices answer, and none
        learns."""
        now = self._clock()
        if not at_rest or self._speed <= 0:
            self._look_at = None
        elif self._look_at is None:
            self._look_at, self._last = now + SETTLE_S, []
            self._busy()
        elif now >= self._look_at:
            self._look_at, self._last = now + MEASURE_S, [*self._last[-1:], self._busy()]
            if len(self._last) == 2:
                return self._judge(min(self._last), max(self._last), self._last[-1])
        return None

    def _judge(self, low: float, high: float, last: float) -> Finding | None:
        """Decide on two measurements."""
        before, least = self._speed, self._first * SLOWEST
        about = f"the cores are {last:.0%} busy"
        if low > BUSY:
            about += " with nothing being learned"
            if self._fixed or before <= least:
                if self._said:
                    return None
                self._said = True
                what = "--speed" if self._fixed else "the slowest replay"
                advice = "a lower --speed" if self._fixed else "fewer --devices"
                return Finding(f"{about} ({what} {before:g}): rounds take longer; {advice}")
            self._speed, change = max(before / 2, least), "slows down"
        elif high < BUSY / 2 and before < self._first:
            self._speed, change = min(before * 2, self._first), "speeds up"
        else:
            return None
        self._look_at, self._last = self._clock() + SETTLE_S, []
        speeds = f"from {before:g} to {self._speed:g} times real time"
        return Finding(f"{about}: the replay {change} {speeds}", self._speed)
