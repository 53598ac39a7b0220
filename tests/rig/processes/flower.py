"""Flower's real processes for tests: SuperLink, SuperExec and one SuperNode per device."""

import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

from compose.launcher import broker, flower_processes
from compose.launcher.broker import Launch
from compose.launcher.certificates import make_certificates
from compose.launcher.node_registry import Nodes
from edge_client.supernode import NodeSettings, command
from federation.controller import controller
from federation.controller.settings import ControllerSettings
from federation.registry.registry import Registry
from streams.contract.artifact import Artifact
from streams.contract.documents import RoundEvent
from streams.contract.topics import topic_name
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings
from tests.rig.processes.polling import until
from tests.rig.processes.running import start


def resident(
    device: str, agent: Path, superlink: str, ca: Path | None = None, key: Path | None = None
) -> Launch:
    """A SuperNode that no invitation has started."""
    settings = NodeSettings(
        device=device, agent=str(agent), superlink=superlink, ca=str(ca or ""), key=str(key or ""),
        pull_s=0.3,
    )  # fmt: skip
    return Launch(command(settings), {"OMP_NUM_THREADS": "1"})


def group_members(group: int) -> list[int]:
    """Processes of a process group that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def journals(state: Path) -> list[list[RoundEvent]]:
    """The events of each run that has begun, oldest first; a line that a kill cut off is none."""
    lines = [path.read_bytes().splitlines() for path in state.glob("runs/*/rounds.jsonl")]
    whole = [[RoundEvent.decode(line) for line in run if line.endswith(b"}")] for run in lines]
    return sorted((run for run in whole if run), key=lambda run: run[0].time_us)


def candidate(registry: Registry) -> Artifact:
    """What a run has made, and no device is there to be offered."""
    found = registry.desired().candidate
    assert found is not None
    return registry.load(found.model)


def read(broker: BrokerSettings, task: str, topic: str) -> list[Received]:
    reader = Reader(broker, [topic_name(task, topic)])
    try:
        return reader.read_to_end()
    finally:
        reader.close()


class FlowerStack:
    """Starts the processes in order, each in its own process group, and ends all of them.

    `secure`: with TLS, and a registered key for each device.
    """

    def __init__(
        self, state: Path, devices: dict[str, Path], env: dict[str, str], secure: bool = False
    ) -> None:
        self.state, self.devices, self.env = state, devices, env
        [self.port] = broker.free_ports(1)
        self.tls = make_certificates(state / "keys") if secure else None
        self.ca = self.tls.ca if self.tls else None
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return f"{flower_processes.HOST}:{self.port}"

    @property
    def nodes(self) -> Nodes:
        return Nodes(self.state / "keys", flower_processes.flwr(self.state, self.address, self.ca))

    def __enter__(self) -> Self:
        try:
            self.start_superlink()
            self.start(
                "superexec", flower_processes.superexec(self.state, self.port, self.env, self.ca)
            )
            if self.tls is not None:
                self.nodes.add_all(list(self.devices))
            for device in self.devices:
                self.start_node(device)
        except BaseException:
            self.__exit__()
            raise
        return self

    def start_superlink(self) -> None:
        self.start("superlink", flower_processes.superlink(self.state, self.port, self.tls))
        until(
            lambda: flower_processes.is_ready(self.address, ca=self.ca), "the SuperLink answers", 60
        )

    def start_node(self, device: str) -> None:
        key = self.nodes.key(device) if self.tls is not None else None
        self.start(device, resident(device, self.devices[device], self.address, self.ca, key))

    def kill(self, name: str) -> None:
        """SIGKILL to the whole group of a process, as the supervisor does it."""
        os.killpg(self.processes[name].pid, signal.SIGKILL)
        self.processes[name].wait(10)

    def start(self, name: str, launch: Launch) -> None:
        env = {**os.environ, **launch.env}
        self.processes[name] = start(launch.argv, self.state / f"{name}.log", env)

    def log(self, name: str) -> str:
        return (self.state / f"{name}.log").read_text()

    def members(self) -> list[int]:
        return [pid for process in self.processes.values() for pid in group_members(process.pid)]

    def __exit__(self, *_exc: object) -> None:
        for process in reversed(self.processes.values()):
            if group_members(process.pid):
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 15
        while self.members() and time.monotonic() < deadline:
            time.sleep(0.05)
            for process in self.processes.values():
                process.poll()
        for process in self.processes.values():
            if group_members(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@contextmanager
def controlled(settings: ControllerSettings) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=controller.run, args=(settings, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def server_apps(processes: FlowerStack) -> list[int]:
    """ServerApps that are alive; the SuperExec starts them."""
    found = []
    for pid in group_members(processes.processes["superexec"].pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"flwr-serverapp" in command:
            found.append(pid)
    return found


def end_lease(processes: FlowerStack) -> None:
    """The SuperLink waits up to a minute for a word of a ServerApp; let that have passed."""
    with closing(sqlite3.connect(processes.state / "flower" / "superlink.db")) as database:
        database.execute(
            "UPDATE task SET active_until = '2000-01-01 00:00:00.000000' "
            "WHERE active_until IS NOT NULL"
        )
        database.commit()
