"""CPU and memory are those of the processes that hold a state folder's lock, by name."""

import sys
from pathlib import Path

import pytest

from compose.dashboard import processes
from compose.dashboard.processes import ProcessUsage
from compose.launcher.broker import Launch
from compose.launcher.state_dir import StateDir
from compose.launcher.supervisor import Supervisor
from tests.polling import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_children_of_up_are_named_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LEAST_S", 0.0)
    usage, layout = ProcessUsage(tmp_path), StateDir(tmp_path)
    assert usage.read() == []
    supervisor = Supervisor(layout.logs)
    with layout.lock():
        supervisor.start("worker", Launch([sys.executable, "-c", "while True: pass"], {}))
        try:
            until(lambda: any((use.cpu or 0) > 0 for use in usage.read()), "a measurement of CPU")
            (use,) = usage.read()
            assert use.name == "worker"
            assert use.memory_bytes > 1_000_000
        finally:
            supervisor.stop_all()
    assert usage.read() == []
