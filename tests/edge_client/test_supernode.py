"""What a device's SuperNode does beside Flower's own."""

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_client.supernode import REPLY_S, REST_S, RUN_S, USUAL_S, Kept, Pace, read_pace
from streams.contract.errors import UsageError
from tests.streams.worker.support import until

PARENT = """
import sys, time
from edge_client.supernode import Kept
Kept().keep([sys.executable, "-c", sys.argv[1], sys.argv[2]])
time.sleep(300)
"""
CHILD = """
import os, pathlib, sys, time
parent = os.getppid()
pathlib.Path(sys.argv[1], str(os.getpid())).touch()
while os.getppid() == parent:
    time.sleep(0.05)
"""


def test_a_superexec_that_is_killed_is_started_again(tmp_path: Path) -> None:
    node = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(tmp_path)])
    try:
        for count in (1, 2, 3):
            until(lambda count=count: len([*tmp_path.iterdir()]) == count, "it runs")  # type: ignore[misc]
            newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
            os.kill(int(newest.name), signal.SIGKILL)
    finally:
        node.kill()
        node.wait(10)


def test_the_superexec_that_it_starts_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    started: queue.Queue[Sequence[str]] = queue.Queue()
    monkeypatch.setattr(Kept, "keep", lambda _self, command: started.put(command))
    Kept().Popen(["flower-superexec", "--insecure", "--parent-pid", "7"])
    assert started.get(timeout=30) == [
        sys.executable, "-m", "edge_client.superexec", "--insecure", "--parent-pid", "7",
    ]  # fmt: skip


def test_it_asks_often_while_a_run_goes_on_and_as_flower_does_at_rest() -> None:
    pace = Pace(0.3)
    assert pace.pause_s(3, 10.0) == REST_S  # no message yet
    assert pace.pause_s(0.5, 20.0) == REPLY_S  # a ClientApp is at work
    assert pace.pause_s(3, 20.0 + RUN_S - 1) == 0.3
    assert pace.pause_s(3, 20.0 + RUN_S) == REST_S
    usual = Pace()
    usual.pause_s(0.5, 0.0)
    assert [usual.pause_s(3, now) for now in (1.0, 100.0)] == [3, 3]
    rare = Pace(60.0)  # of a fleet of many
    assert (rare.pause_s(0.5, 0.0), rare.pause_s(3, 1.0)) == (REPLY_S, 60.0)


@pytest.mark.parametrize("text", ["0", "-1", "601", "nan", "often", ""])
def test_a_pace_that_is_none_is_an_error_that_says_so(text: str) -> None:
    with pytest.raises(UsageError, match=r"TIDEWHEEL_PULL_S=.*give seconds, 0\.05 to 600"):
        read_pace({"TIDEWHEEL_PULL_S": text})


def test_it_has_the_pace_of_its_environment() -> None:
    assert read_pace({"TIDEWHEEL_PULL_S": "0.3"}).pause_s(0.2, 0.0) == REPLY_S
    assert read_pace({}).pause_s(3, 0.0) == USUAL_S
