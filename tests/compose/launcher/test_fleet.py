"""What `up` starts: the console, the runner of jobs, Flower's processes."""

import contextlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from compose.launcher import flower_processes
from compose.launcher.broker import free_ports
from compose.launcher.commands import Commands
from compose.launcher.fleet import Fleet, Flower
from compose.launcher.state_dir import StateDir
from compose.launcher.supervisor import Supervisor
from tests.rig.processes.polling import until
from tests.rig.processes.running import end, start


class FakeSupervisor:
    """Notes what is started."""

    def __init__(self) -> None:
        self.started: list[tuple[str, Any, bool]] = []

    def start(self, name: str, launch: Any, *, essential: bool = True) -> None:
        self.started.append((name, launch, essential))


class FakeCommands:
    def console(self, port: int) -> int:
        return port


def fleet(supervisor: FakeSupervisor, said: list[str]) -> Fleet:
    return Fleet(
        cast(Commands, FakeCommands()), cast(StateDir, None), cast(Supervisor, supervisor),
        cast(Flower, None), None, lambda ready, name, what: None, said.append,
    )  # fmt: skip


def test_without_its_library_the_fleet_starts_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    supervisor, said = FakeSupervisor(), list[str]()
    fleet(supervisor, said)._start_console()
    assert supervisor.started == []
    [line] = said
    assert 'pip install "tidewheel[console]"' in line


def test_superlink_and_superexec_are_there_while_the_controller_wants_them(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "logs")
    environment = {"TIDEWHEEL_KAFKA": "127.0.0.1:1"}
    flower = Flower(tmp_path, environment, supervisor, free_ports(1)[0], linger_s=1.0)
    wanted = tmp_path / "controller" / "superlink-wanted"

    def run_until(what: str, *names: str) -> None:
        def reached() -> bool:
            flower.look()
            return supervisor.check() == [] and set(supervisor.children) == set(names)

        until(reached, what, 60)

    try:
        flower.look()
        assert not supervisor.children
        wanted.parent.mkdir()
        for _ in range(2):  # for each of two runs
            wanted.touch()
            run_until("both are there", "superlink", "superexec")
            assert flower.answers()
            wanted.unlink()
            run_until("both have ended")
            assert not flower_processes.listens(flower.address)
    finally:
        supervisor.stop_all()


def test_the_command_keeps_both_and_leaves_nothing(tmp_path: Path) -> None:
    [port] = free_ports(1)
    words = ["superlink", "--state", tmp_path / "state", "--port", str(port)]
    log = tmp_path / "log"
    process = start([sys.executable, "-m", "compose.cli.main", *words], log)
    own = psutil.Process(process.pid)

    def both() -> dict[str, psutil.Process]:
        found = {name: child for child in own.children() for name in names(child)}
        return found if len(found) == 2 else {}

    try:
        until(both, "both are there", 60)
        for name, first in both().items():
            first.kill()
            until(lambda name=name, first=first: both().get(name, first) != first, name, 60)
            assert f"{name} killed by SIGKILL; it is started again" in log.read_text()
        children = list(both().values())
        process.terminate()
        assert process.wait(30) == 0
        assert not any(child.is_running() for child in children)
    finally:
        end(process)


def names(child: psutil.Process) -> list[str]:
    """Which of both a process is."""
    with contextlib.suppress(psutil.Error):  # it has just ended
        line = " ".join(child.cmdline())
        return [name for name in ("superlink", "superexec") if line.find(f"/flower-{name} ") > 0]
    return []
