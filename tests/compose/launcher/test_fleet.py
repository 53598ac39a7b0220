"""The console of `up`: its address is said, and what it lacks costs the page alone."""

import importlib.util
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from compose.launcher import fleet as module
from compose.launcher.broker import BrokerChoice
from compose.launcher.commands import Commands, UpOptions
from compose.launcher.fleet import CONSOLE_PORT, Fleet, console_port
from compose.launcher.state_dir import StateDir
from compose.launcher.supervisor import Supervisor
from streams.contract.task import Task
from streams.kafka.settings import BrokerSettings


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
        cast(Commands, FakeCommands()), cast(StateDir, None), cast(Supervisor, supervisor), 0, None,
        lambda ready, name, what: None, said.append,
    )  # fmt: skip


def test_the_console_is_started_and_its_address_said() -> None:
    supervisor, said = FakeSupervisor(), list[str]()
    fleet(supervisor, said)._start_console()
    [(name, port, essential)] = supervisor.started
    assert (name, essential) == ("console", False)
    assert said == [f"console   http://127.0.0.1:{port}"]


def test_where_the_usual_port_is_taken_another_one_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(module, "CONSOLE_PORT", taken.getsockname()[1])
        assert console_port() not in (taken.getsockname()[1], CONSOLE_PORT)


def test_without_its_library_the_fleet_starts_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    supervisor, said = FakeSupervisor(), list[str]()
    fleet(supervisor, said)._start_console()
    assert supervisor.started == []
    [line] = said
    assert 'pip install "tidewheel[console]"' in line


def test_the_runner_of_jobs_has_the_state_folder_and_the_broker() -> None:
    options = UpOptions("t.py:task", 2, Path("here"), jobs=True)
    choice = BrokerChoice("external", BrokerSettings(TIDEWHEEL_KAFKA="there:9092"), "")
    launch = Commands(options, "t.py:task", cast(Task, None), choice, None).jobs()
    assert launch.argv[-4:] == ["jobs", "run", "--state", "here"]
    assert launch.env["TIDEWHEEL_KAFKA"] == "there:9092"
