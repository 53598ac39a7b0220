"""What `up` starts: the console, the runner of jobs, Flower's processes."""

import importlib.util
from pathlib import Path
from typing import Any, cast

import pytest

from compose.launcher import flower_processes
from compose.launcher.broker import BrokerChoice, free_ports
from compose.launcher.commands import Commands, UpOptions
from compose.launcher.fleet import Fleet, Flower
from compose.launcher.state_dir import StateDir
from compose.launcher.supervisor import Supervisor
from streams.contract.task import Task
from streams.kafka.settings import BrokerSettings
from tests.rig.processes.polling import until


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
    choice = BrokerChoice("external", BrokerSettings(bootstrap="127.0.0.1:1"), "")
    commands = Commands(
        UpOptions("t.py:task", 2, tmp_path), "t.py:task", cast(Task, None), choice, None
    )
    supervisor = Supervisor(tmp_path / "logs")
    flower = Flower(commands, supervisor, free_ports(1)[0], linger_s=1.0)
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
