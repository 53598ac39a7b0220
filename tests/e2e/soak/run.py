"""One soak from its first day to the closed account."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from streams.contract.documents import Document
from streams.contract.task import load_task
from streams.kafka.settings import BrokerSettings
from streams.worker.store.query import server_account
from tests.e2e.soak.fleet import Context, Fleet, Shared
from tests.e2e.soak.scenario import STEP_H, Scenario
from tests.e2e.soak.server import WORKERS, Server, resident_mb
from tests.rig.asked import asked

SETTLE_S = 600.0
BEHIND_DAYS = 2.0  # that workers may be behind, in messages
MORE_DAYS = 10  # at most, until the last rollout has ended
DAY_S = 1.5  # at least: the controller would have had the time to look at a day's windows
TASK = f"{Path(__file__).parent / 'task.py'}:task"


class Day(Document):
    """What is seen at the end of a day. memory_mb: by process."""

    day: int
    seconds: float
    memory_mb: dict[str, float]
    store_files: int
    store_mb: float
    served: dict[str, int]


@dataclass
class Soak:
    """The outcome. open: by (device, epoch), events that are not accounted for."""

    days: list[Day] = field(default_factory=list)
    produced: int = 0
    scored: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # by reason, as the store has them
    open: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    rows: int = 0
    lag: int = 0
    commands_s: dict[str, float] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)  # at the end
    fenced: int = 0  # workers that were started again because another one had committed
    seconds: float = 0.0


def soak(
    folder: Path,
    broker: BrokerSettings,
    scenario: Scenario,
    name: str,
    kafka_pid: int | None,
    say: Callable[[str], None],
) -> Soak:
    """Run the scenario; leave nothing running."""
    (folder / "task.py").write_text(
        "import dataclasses\nfrom tidewheel import load_task\n"
        f"task = dataclasses.replace(load_task({TASK!r}), name={name!r})\n"
    )
    reference = f"{folder / 'task.py'}:task"
    server = Server(broker, folder, reference, load_task(reference), scenario.keep)
    devices = Path(os.environ.get("TIDEWHEEL_SOAK_DEVICES") or folder / "devices")
    context = Context(
        server.task, broker, devices / name, [server.key.public_key()], Shared(broker)
    )
    fleet = Fleet(context, scenario)
    run = _Run(server, fleet, scenario, kafka_pid, say)
    try:
        return run.run()
    finally:
        fleet.end()
        server.end()


@dataclass
class _Run:
    server: Server
    fleet: Fleet
    scenario: Scenario
    kafka_pid: int | None
    say: Callable[[str], None]
    found: Soak = field(default_factory=Soak)
    offers: list[tuple[int, int]] = field(default_factory=list)  # (day, version) to come

    def run(self) -> Soak:
        began, scenario = time.monotonic(), self.scenario
        for name in (*WORKERS, "controller"):
            self.server.start(name)
        self._until("every device serves the first version", self._all_serve_something)
        self.offers = [(scenario.first, 2), (scenario.bad, 3), (scenario.second, 4)]
        day = 0
        while day < scenario.days or (not self._is_settled() and day < scenario.days + MORE_DAYS):
            day_began = time.monotonic()
            self._events_of(day)
            self.fleet.day()
            for step in range(24 // STEP_H):
                self.fleet.step(day * 24 // STEP_H + step)
            self._let_workers_follow(day)
            time.sleep(max(0.0, day_began + DAY_S - time.monotonic()))
            self.server.pass_retention(scenario.keep)
            self._note(day, time.monotonic() - day_began)
            day += 1
        self._close()
        self.found.seconds = time.monotonic() - began
        return self.found

    def _events_of(self, day: int) -> None:
        scenario, server = self.scenario, self.server
        if day == scenario.kill_worker:
            server.stop("w0", signal.SIGKILL)
            server.start("w0")
        if day == scenario.away[0]:
            for name in WORKERS:
                server.stop(name)
        if day == scenario.away[1]:
            for name in WORKERS:
                server.start(name)
        if day == scenario.kill_controller:
            server.stop("controller", signal.SIGKILL)
            server.start("controller")
        if day == scenario.teacher:
            server.offer_teacher()
        if self.offers and day >= self.offers[0][0] and self._is_free():
            _, number = self.offers.pop(0)
            self.found.versions[str(number)] = server.offer(number)

    def _let_workers_follow(self, day: int) -> None:
        """Time is virtual: workers that run are given the time that they would have had."""
        self.server.check_alive()
        away, until = self.scenario.away
        if away <= day < until:
            return
        most = BEHIND_DAYS * len(self.fleet.devices) * 24 // STEP_H
        self._until("workers follow", lambda: self.server.behind() <= most)

    def _is_settled(self) -> bool:
        return not self.offers and self._is_free()

    def _is_free(self) -> bool:
        """Whether no version is on its way."""
        desired = self.server.registry.desired()
        return desired.offered is None and desired.candidate is None

    def _all_serve_something(self) -> bool:
        self.fleet.follow()
        return "" not in self.fleet.served()

    def _all_serve_the_release(self) -> bool:
        """The last decision may have come after the devices' last look."""
        self.fleet.follow()
        stable = self.server.registry.desired().stable
        return stable is not None and set(self.fleet.served()) == {stable.model}

    def _note(self, day: int, seconds: float) -> None:
        memory = self.server.memory_mb() | {"devices": resident_mb(os.getpid())}
        if self.kafka_pid is not None:
            memory["Kafka"] = resident_mb(self.kafka_pid)
        files, size_mb = self.server.store_size()
        served = dict(self.fleet.served())
        self.found.days.append(
            Day(day=day, seconds=seconds, memory_mb=memory, store_files=files, store_mb=size_mb,
                served=served)
        )  # fmt: skip
        mb = ", ".join(f"{name} {value:.0f}" for name, value in sorted(memory.items()))
        self.say(f"day {day}: {seconds:.1f} s; MB: {mb}; store {files} files, {size_mb:.0f} MB; "
                 f"serving {served}")  # fmt: skip

    def _close(self) -> None:
        """Every device serves what is released, every event is delivered, and then scored or
        declared."""
        self._until("every device serves what is released", self._all_serve_the_release)
        self.found.served = dict(self.fleet.served())
        self.fleet.drain()
        self._until("the account closes", self._is_closed)
        found, store = self.found, self.server.layout.store
        found.lag, found.fenced = self.server.lag(), self.server.fenced
        for words in (("status", "--json"), ("timeline", "--json")):
            found.commands_s[words[0]], _ = self.server.command(
                words[0], self.server.reference, *words[1:]
            )
        count = "select count(*) from scores"
        found.commands_s["query"], _ = self.server.command("query", count)
        found.decisions = [
            f"{release.decision.kind} {release.decision.model}"
            for release in self.server.registry.history(after=0)
        ]
        rows = asked(store, "select count(*), count(distinct (device, epoch, seq)) from scores")
        dropped = asked(
            store, "select reason, sum(last - first + 1) from drops group by all order by all"
        )
        found.rows, found.repeated = rows[0][0], rows[0][0] - rows[0][1]
        found.dropped = {reason: int(count) for reason, count in dropped}

    def _is_closed(self) -> bool:
        """Compare the devices' own counts, from their frames, with the store's."""
        self.server.check_alive()
        devices, store = self.fleet.accounts(), server_account(self.server.layout.store)
        found = self.found
        found.produced = sum(account.produced for account in devices.values())
        found.scored = sum(scored for scored, _ in store.values())
        found.open = {}
        for (device, epoch), account in devices.items():
            scored, dropped = store.get((device, epoch), (0, 0))
            if left := account.produced - account.pending - scored - dropped:
                found.open[f"{device}/{epoch}"] = left
        return not found.open and not any(account.pending for account in devices.values())

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SETTLE_S
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {SETTLE_S:.0f} s: {what}; {self.found.open}")
            time.sleep(0.1)
