"""`tidewheel up`: everything on one machine, in one terminal, until one Ctrl-C.

1 look at the task; hold the state folder, choose the broker
2 start it, meanwhile make the first model and the teacher (cached), sign and keep them
3 start the worker; when the broker answers create the topics, start console, devices, controller
4 watch: restart what dies, start SuperLink and SuperExec when a run wants them or may soon, show
  progress, until told or until the loop has closed
5 drain: devices send what they have, the worker scores it
6 take everything down; say what was measured, and whether the event account balances
"""

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from rich.console import Console

from compose.launcher import broker, progress
from compose.launcher.certificates import Tls, make_certificates
from compose.launcher.commands import Commands, UpOptions, chosen_devices
from compose.launcher.fleet import Fleet, Flower
from compose.launcher.progress import Finding, Pace, Phase, Screen
from compose.launcher.state_dir import StateDir
from compose.launcher.supervisor import Supervisor, prepared
from compose.reports.follower import Follower, Lag
from compose.reports.problems import Status
from compose.reports.summary import ServerCounts, Summary, render
from streams.contract.errors import BrokerUnavailable, ProcessFailed, UsageError
from streams.contract.task import NOTHING_LEARNS, absolute_reference, load_task
from streams.fleet.view import FleetView
from streams.fleet.wording import counted, listed
from streams.kafka.admin import probe
from streams.runtime.files import write_atomic
from streams.runtime.process import Interrupted, Interrupts

READY_S = 60.0
PROBE_S = 5.0  # before anything is trained for a fleet that has no broker
TICK_S = 0.25
HEARD_S = 5.0  # after the devices have ended: what they said last is read by then
SETTLE_S = 30.0  # for a broker or device that has just died to run again
DRAIN_LINE_S = 2.0  # between two lines about what is left
CATCH_UP_S = 10.0  # for what is on the topics already: it is no news
KEEP_S = 10.0  # between two writings of what was seen
SILENT_S, EACH_S = 15.0, 1.0  # until all have reported: a start, and a second of CPU a device


class Up:
    """One run of the launcher."""

    def __init__(self, options: UpOptions, console: Console) -> None:
        self._options = options
        self._reference = absolute_reference(options.task)
        self._task = load_task(self._reference)
        if options.until_closed and not self._task.learns:
            raise UsageError(f"--until-closed waits for a learned version: {NOTHING_LEARNS}")
        self._layout = StateDir(options.state)
        self._devices = chosen_devices(self._task, options.devices)
        self._supervisor = Supervisor(self._layout.logs)
        self._screen = Screen(console, len(self._devices))
        self._console = console
        self._interrupts = Interrupts()
        self._topics_gone = False
        self._tls: Tls | None = None
        self._began_us = time.time_ns() // 1000

    def run(self) -> int:
        """The six steps; the exit code."""
        with ExitStack() as held, self._interrupts:
            follower: Follower | None = None
            try:
                self._prepare(held)
                ca = None if self._tls is None else self._tls.ca
                own = Commands(self._options, self._reference, self._task, self._choice, ca)
                state, port = self._options.state, broker.superlink_port(self._options.state)
                self._flower = Flower(state, own.environment, self._supervisor, port, self._tls)
                self._fleet = Fleet(
                    own, self._layout, self._supervisor, self._flower, self._tls, self._await,
                    self._screen.say,
                )  # fmt: skip
                self._fleet.start(self._devices)
                follower = Follower(self._choice.settings, self._task.id)
                follower.start()
                self._interrupts.check()
                closed = self._watch(follower)
                if self._interrupts.seen and not follower.read(self._mine).devices:
                    raise Interrupted
                self._drain(follower)
                return self._report(follower, closed)
            except Interrupted:
                self._interrupts.patient = True
                self._screen.say("stopped before the fleet had started")
                return 130
            finally:
                self._interrupts.patient = True
                if follower is not None:
                    follower.keep(self._layout.last_seen)
                    follower.stop()
                self._supervisor.stop_all()

    # --- 1, 2: broker and models ----------------------------------------------------------------

    def _prepare(self, held: ExitStack) -> None:
        """Once the task is known to work, hold the folder and choose the broker, which is started
        while the models are made."""

        def looked() -> None:
            held.enter_context(self._layout.lock())
            self._choose_broker()

        state, logs = self._layout.state, self._layout.logs
        prepared(self._reference, state, logs, looked, self._start_broker, self._make_ready)

    def _make_ready(self, text: str) -> None:
        """Say a step of the set-up, unless a signal has come."""
        self._interrupts.check()
        self._screen.say(text)

    def _choose_broker(self) -> None:
        choice = broker.choose(self._options.state, self._options.kafka, os.environ)
        self._screen.say(f"broker    {choice.why}")
        if choice.kind == "external" and not probe(choice.settings, PROBE_S):
            raise BrokerUnavailable(
                f"no Kafka broker answers at {choice.settings.bootstrap} after {PROBE_S:.0f} s: "
                "start it, name another with --kafka HOST:PORT, or check TIDEWHEEL_KAFKA_*"
            )
        self._choice = choice

    def _start_broker(self) -> None:
        if self._choice.kind != "external":
            launch = broker.command(self._choice, self._options.state)
            self._supervisor.start("broker", launch, 20.0)
        if self._options.secure:
            self._tls = make_certificates(self._layout.keys)

    # --- 3: the fleet ---------------------------------------------------------------------------

    def _await(self, ready: Callable[[], bool], name: str, what: str) -> None:
        """Probe until ready; ProcessFailed with the process's last line when it is not in time."""
        deadline = time.monotonic() + READY_S
        while not ready():
            self._interrupts.check()
            for text in self._supervisor.check():
                self._screen.say(text)
            if time.monotonic() > deadline:
                words = self._supervisor.last_words(name)
                raise ProcessFailed(f"{what} does not answer after {READY_S:.0f} s: {words}")
            time.sleep(0.1)

    # --- 4: watch -------------------------------------------------------------------------------

    def _watch(self, follower: Follower) -> bool:
        """Show and mend until it is time to end; whether the loop has closed."""
        o = self._options
        self._interrupts.patient = True
        began, began_s = time.monotonic(), time.time()
        kept_at = began
        self._say_start()
        phase = Phase(len(self._devices), self._began_us)
        patience_s: float | None = SILENT_S + EACH_S * len(self._devices)
        pace = Pace(o.first_speed, progress.read_busy(), fixed=o.speed is not None)
        slowest = o.first_speed * progress.SLOWEST if o.speed is None else o.speed
        while not follower.caught_up.is_set() and time.monotonic() - began < CATCH_UP_S:
            if self._interrupts.stop.wait(TICK_S):
                break
        with self._screen as screen:
            follower.read(lambda view: view.news.clear())  # what was there before this run
            while not self._interrupts.stop.wait(TICK_S):
                self._mend(screen.say)
                self._flower.look()

                def look(fleet: FleetView) -> None:
                    nonlocal patience_s
                    view = self._mine(fleet)
                    phase.look(view)
                    since = progress.stalled(view, began_s, slowest, self._task, time.time())
                    screen.show(view, phase.now, since)
                    rest = self._task.source != "live" and phase.at_rest
                    if found := pace.look(at_rest=rest):
                        self._say_pace(found)
                    if patience_s is not None and time.monotonic() - began > patience_s:
                        patience_s = None
                        if unheard := self._silent(view):
                            screen.say(self._unheard(unheard))

                follower.read(look)
                if time.monotonic() - kept_at > KEEP_S:
                    follower.keep(self._layout.last_seen)
                    kept_at = time.monotonic()
                elapsed = time.monotonic() - began
                if (o.until_closed and phase.closed) or (o.minutes and elapsed > 60 * o.minutes):
                    break
                if o.until_closed and elapsed > o.timeout:
                    screen.say(f"the loop has not closed in {o.timeout:.0f} s")
                    screen.say(progress.why_open(follower.read(self._status), self._task))
                    break
        return phase.closed

    def _say_start(self) -> None:
        """Say how many devices a new version goes to, stage by stage."""
        of = len(self._devices)
        counts = [max(1, math.ceil(float(share) * of)) for share in self._options.stages.split(",")]
        goes_to = ", then ".join(dict.fromkeys(map(str, counts)))
        devices = counted(of, "device")
        self._screen.say(f"fleet     {devices}; Ctrl-C stops everything")
        self._screen.say(f"rollout   a new version goes to {goes_to} of {devices} (--stages)")

    def _mine(self, view: FleetView) -> FleetView:
        return progress.of_run(view, self._devices, self._began_us)

    def _silent(self, view: FleetView) -> list[str]:
        return [name for name in self._devices if name not in view.devices]

    def _say_pace(self, found: Finding) -> None:
        self._screen.say(f"pace      {found.text}")
        if found.speed is not None:
            self._fleet.pace(self._devices, found.speed)

    def _unheard(self, devices: Sequence[str]) -> str:
        log = f"edge-{devices[0]}"
        where, words = self._supervisor.log_path(log), self._supervisor.last_words(log)
        return f"silent    {listed(devices)} reported nothing yet; {log}: {words} (see {where})"

    def _mend(self, say: Callable[[str], None]) -> None:
        """Restart what has died. A broker that keeps nothing needs its topics again."""
        for text in self._supervisor.check():
            say(text)
            self._topics_gone |= text.startswith("broker ") and self._choice.kind == "embedded"
        if self._topics_gone and probe(self._choice.settings, 0.5):
            self._fleet.make_topics()
            self._topics_gone = False

    # --- 5, 6: drain and report -----------------------------------------------------------------

    def _settle(self, follower: Follower) -> None:
        """Wait until what has just died runs again: a device ends after some seconds of sending."""
        deadline, patience = time.monotonic() + SETTLE_S, max(self._interrupts.seen, 1)
        said = False
        while time.monotonic() < deadline and self._interrupts.seen <= patience:
            time.sleep(0.5)  # before the first look too: a death takes a moment to be seen
            self._mend(self._screen.say)
            answers = self._choice.kind == "external" or probe(self._choice.settings, 0.5)
            if not (away := follower.read(self._down) if answers else ["the broker"]):
                return
            if not said:
                self._screen.say(f"waiting   for {listed(away)} to run again")
                said = True

    def _down(self, view: FleetView) -> list[str]:
        """The devices that are dead, or have said nothing since they were started again."""
        again_us = {name: self._supervisor.began_again_us(f"edge-{name}") for name in self._devices}
        heard_us = {name: state.time_us for name, state in view.devices.items()}
        return [name for name in self._devices if heard_us.get(name, 0) < again_us[name]]

    def _drain(self, follower: Follower) -> None:
        """End the devices, then wait until the worker has scored what they have sent."""
        self._settle(follower)
        self._screen.say("drain     devices send what they have; the worker scores it")
        if line := follower.read(progress.interrupted):
            self._screen.say(line)
        # A run would go on with devices that end, and be judged by what they no longer say.
        self._supervisor.stop("controller", "superexec")
        self._supervisor.stop(*[f"edge-{device}" for device in self._devices])
        heard_by = time.monotonic() + HEARD_S
        waits_s = self._task.idle_close_s + 30.0  # since the workers last scored something
        least, deadline = sys.maxsize, time.monotonic() + waits_s
        patience = max(self._interrupts.seen, 1)  # one more Ctrl-C ends the waiting
        left = said = ""
        said_at = time.monotonic()
        while self._interrupts.seen <= patience:
            self._mend(self._screen.say)
            summary = self._summary(follower)
            if (unscored := summary.total("unscored")) < least:
                least, deadline = unscored, time.monotonic() + waits_s
            if time.monotonic() > deadline:
                break
            left = summary.left
            if not left and not (summary.silent and time.monotonic() < heard_by):
                return
            if left not in ("", said) and time.monotonic() - said_at > DRAIN_LINE_S:
                self._screen.say(f"drain     {left}")
                said, said_at = left, time.monotonic()
            time.sleep(0.5)
        self._screen.say(f"drain     ended with {left}")

    def _summary(self, follower: Follower) -> Summary:
        server: ServerCounts = {}
        if self._layout.store.exists():
            from streams.worker.store.query import server_account  # Delta and DuckDB: 60 MB

            server = server_account(self._layout.store)

        status = follower.read(self._status)
        return Summary(
            status, server, self._options.state, self._silent(status.view),
            dict(self._supervisor.restarts),
        )  # fmt: skip

    def _status(self, view: FleetView) -> Status:
        return Status(self._mine(view), Lag(), time.time())

    def _report(self, follower: Follower, closed: bool) -> int:
        words = self._supervisor.last_words("worker-0" if self._options.workers > 1 else "worker")
        summary = replace(
            self._summary(follower), closed=closed, broker=self._choice.kind, words=words
        )
        text = summary.encode().decode()
        write_atomic(self._options.state / "summary.json", text.encode())
        if self._options.json:
            print(text)  # noqa: T201
        else:
            render(summary, self._console)
        if not (
            summary.balanced and not summary.silent and (closed or not self._options.until_closed)
        ):
            return 1
        return 3 if summary.means_little else 0
