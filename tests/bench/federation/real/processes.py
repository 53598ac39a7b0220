"""The real processes of a measurement, each in its own process group: ours, and those of a stock
Flower app with Flower's own settings."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from compose.launcher import broker, flower_processes
from compose.launcher.broker import Launch
from federation.controller.flwr_cli import ConfigValue, Flwr, Submission
from streams.contract.documents import RoundEvent
from streams.contract.task import load_task
from streams.contract.topics import topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.settings import BrokerSettings
from streams.runtime.disk import write_atomic
from tests.bench.federation.real.devices import Planned
from tests.bench.kafka import ROOT
from tests.federation.flower_stack import resident

STOCK = Path(__file__).parent / "stock"
POLL_S = 0.2


@dataclass(frozen=True)
class Ended:
    """A run's rounds: when each ended, seconds since 1970, and the accuracy then;
    round 0 is where it began."""

    rounds: list[tuple[int, float, float]]

    @property
    def seconds_per_round(self) -> float:
        """The mean from the end of the first round to that of the last: without what only the first
        has, whichever side has more of it."""
        (first, began, _), (last, ended, _) = self.rounds[1], self.rounds[-1]
        return (ended - began) / (last - first)

    @property
    def seconds(self) -> float:
        return self.rounds[-1][1] - self.rounds[0][1]

    def seconds_to(self, accuracy: float) -> float | None:
        found = reached(self.rounds, accuracy)
        return None if found is None else found - self.rounds[0][1]


def reached(rounds: Sequence[tuple[int, float, float]], accuracy: float) -> float | None:
    """When a model had been so accurate twice in a row: once may be luck."""
    for (_, _, before), (_, at, share) in pairwise(rounds):
        if min(before, share) >= accuracy:
            return at
    return None


@dataclass
class Processes:
    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, launch: Launch) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running.append(
                subprocess.Popen(
                    launch.argv, env={**os.environ, **launch.env},
                    stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                )
            )  # fmt: skip

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(self.running):
                if _alive(process.pid):
                    os.killpg(process.pid, number)
            deadline = time.monotonic() + 10
            while any(_alive(p.pid) for p in self.running) and time.monotonic() < deadline:
                for process in self.running:
                    process.poll()
                reap({process.pid for process in self.running})
                time.sleep(0.05)
        for process in self.running:
            process.wait(10)
        end_all("FLWR_HOME", self.folder)  # a ServerApp outlives its SuperLink, in another group


def adopt_orphans() -> None:
    """Have processes that outlive their parents become this one's children, so that what they use
    is not taken for the load of others (PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def reap(started: set[int]) -> None:
    """Wait for adopted processes that have ended, not for those that were started here."""
    for path in Path("/proc/self/task").glob("*/children"):
        for pid in {int(one) for one in path.read_text().split()} - started:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def end_all(variable: str, folder: Path) -> None:
    """Kill the processes that have a path in `folder` as this variable of their environment."""
    home = f"{variable}={folder}/".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if any(one.startswith(home) for one in path.read_bytes().split(b"\0")):
                os.kill(int(path.parent.name), signal.SIGKILL)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(POLL_S)


@contextmanager
def ours(
    folder: Path, reference: str, plan: Sequence[Planned], kafka: str
) -> Iterator[tuple[int, Processes]]:
    """Topics as `up` creates them, SuperLink, SuperExec, a SuperNode for each device, and the
    devices; the SuperLink's port."""
    processes = Processes(folder)
    path = folder / "plan.json"
    path.write_text(json.dumps([asdict(one) for one in plan]))
    [port] = broker.free_ports(1)
    try:
        argv = [sys.executable, "-m", "tests.bench.federation.real.devices", reference, str(path)]
        env = {"TIDEWHEEL_KAFKA": kafka}
        ensure_topics(BrokerSettings(bootstrap=kafka), topic_specs(load_task(reference).name))
        processes.start("devices", Launch(argv, {"PYTHONPATH": str(ROOT), **env}))
        processes.start("superlink", flower_processes.superlink(folder, port))
        wait_for("the SuperLink", lambda: flower_processes.is_ready(port), 60)
        processes.start("superexec", flower_processes.superexec(folder, port, env))
        for one in plan:
            address = f"{flower_processes.HOST}:{port}"
            processes.start(one.device, resident(one.device, Path(one.socket), address))
        wait_for("the devices", path.with_suffix(".ready").exists, 120)
        yield port, processes
    finally:
        processes.stop()


@contextmanager
def stock(folder: Path, plan: Sequence[Planned]) -> Iterator[tuple[int, Processes]]:
    """As Flower's documentation starts them, but for the ports."""
    processes = Processes(folder)
    port, *ports = broker.free_ports(1 + len(plan))
    try:
        argv = [flower_processes.program("flower-superlink"), "--insecure", "--host", "127.0.0.1"]
        processes.start("superlink", Launch([*argv, "--port", str(port)], _env(folder, "home")))
        wait_for("the SuperLink", lambda: flower_processes.is_ready(port), 60)
        for own, one in zip(ports, plan, strict=True):
            argv = [flower_processes.program("flower-supernode"), "--insecure"]
            argv += ["--superlink", f"127.0.0.1:{port}", "--host", "127.0.0.1", "--port", str(own)]
            config = f'device="{one.device}" data="{one.data}" slow={one.slow:.1f} '
            argv += ["--node-config", f"{config}drop={one.drop:.2f} away={one.away_s:.1f}"]
            processes.start(one.device, Launch(argv, _env(folder, one.device)))
        yield port, processes
    finally:
        processes.stop()


def _env(folder: Path, home: str) -> dict[str, str]:
    """Of Flower's settings only those that keep it off the network, and one thread as ours has."""
    kept = flower_processes.environment(folder / "homes" / home)
    del kept["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"]
    return {**kept, "PYTHONPATH": str(ROOT)}


def run_ours(
    folder: Path, port: int, config: dict[str, ConfigValue], timeout_s: float, until: float = 1.0
) -> Ended:
    """Until the run ends, or its model is `until` accurate."""
    submission = flower_processes.submission(folder, f"127.0.0.1:{port}", config)
    run = submission.start({}, folder)
    journal = folder / "runs" / run / "rounds.jsonl"

    def events() -> list[RoundEvent]:
        lines = journal.read_bytes().splitlines() if journal.exists() else []
        return [RoundEvent.decode(line) for line in lines]

    def rounds() -> list[tuple[int, float, float]]:
        return [
            (e.round, e.time_us / 1e6, e.metrics["held_out"])
            for e in events()
            if e.kind == "evaluated" and "held_out_base" not in e.metrics
        ]

    def over() -> bool:
        ended = any(event.kind == "finished" for event in events())
        return ended or reached(rounds(), until) is not None

    wait_for(f"our run ({folder})", over, timeout_s)
    began = next(e.time_us for e in events() if e.kind == "started") / 1e6
    return Ended([(0, began, 0.0), *rounds()])


def run_stock(
    folder: Path, port: int, config: dict[str, ConfigValue], timeout_s: float, until: float = 1.0
) -> Ended:
    """Until the run ends, or its model is `until` accurate."""
    app, times = folder / "app", folder / "times.jsonl"
    shutil.copytree(STOCK, app)
    home = folder / "homes" / "home"
    text = f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{port}"\n'
    write_atomic(home / "config.toml", f"{text}insecure = true\n".encode())
    flwr = Flwr(flower_processes.program("flwr"), "bench", _env(folder, "home"))
    submission = Submission(flwr, app)
    submission.start({**config, "times": str(times)}, folder)
    last = int(config["rounds"])

    def rounds() -> list[tuple[int, float, float]]:
        lines = times.read_text().splitlines() if times.exists() else []
        found = [json.loads(line) for line in lines]
        return [(one["round"], one["at"], one["held_out"]) for one in found]

    def over() -> bool:
        return any(number == last for number, _, _ in rounds()) or bool(reached(rounds(), until))

    wait_for(f"the stock run ({folder})", over, timeout_s)
    return Ended(rounds())
