"""What a device's SuperNode does beside Flower's own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.streams.worker.support import until

PARENT = """
import sys, time
from edge_client.supernode import Kept
Kept().Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
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
