"""Ctrl-C ends a command without a traceback, at any moment."""

import signal
from pathlib import Path

import pytest

from tests.compose.cli.test_cli import installed, tidewheel
from tests.rig.processes.fleet import TINY

INTERRUPTED = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    raise {error}("initialization failed")
"""


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_ctrl_c_of_which_a_library_makes_another_error_is_ctrl_c(
    tmp_path: Path, error: str
) -> None:
    (tmp_path / "mine.py").write_text(INTERRUPTED.format(error=error))
    done = tidewheel("check", "mine.py:task", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_while_python_exits_leaves_no_traceback(tmp_path: Path) -> None:
    late = "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
    (tmp_path / "mine.py").write_text(TINY.read_text() + late)
    done = installed("schema", "mine.py:task", folder=tmp_path)
    assert done.stdout.startswith("{")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
