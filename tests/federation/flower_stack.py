"""Flower's real processes for tests: SuperLink, SuperExec and one SuperNode per device."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from compose import flower
from compose.broker import Launch


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait until `condition` holds; fail and say `what` when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(0.05)


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


class FlowerStack:
    """Starts the processes in order, each in its own process group, and ends all of them."""

    def __init__(self, state: Path, devices: dict[str, Path], env: dict[str, str]) -> None:
        self.state, self.devices, self.env = state, devices, env
        self.port, *self.node_ports = flower.free_ports(1 + len(devices))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self.start("superlink", flower.superlink(self.state, self.port))
            wait_for("the SuperLink answers", lambda: flower.is_ready(self.port), 60)
            self.start("superexec", flower.superexec(self.state, self.port, self.env))
            for port, (device, path) in zip(self.node_ports, self.devices.items(), strict=True):
                launch = flower.supernode(self.state, self.port, device, path, port)
                self.start(device, launch)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start(self, name: str, launch: Launch) -> None:
        log = self.state / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self.processes[name] = subprocess.Popen(
                launch.argv,
                env={**os.environ, **launch.env},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, name: str) -> str:
        return (self.state / f"{name}.log").read_text()

    def members(self) -> list[int]:
        return [pid for process in self.processes.values() for pid in group_members(process.pid)]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
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
