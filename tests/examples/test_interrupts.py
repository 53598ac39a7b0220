"""Ctrl-C ends a demo without a traceback, also while it imports its libraries."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.processes.forks import executed

ROOT = Path(__file__).parents[2]
INTERRUPTED = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(10)
"""


@pytest.mark.parametrize("demo", ["batch", "drift"])
def test_ctrl_c_in_the_imports_of_a_demo_ends_it(demo: str, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(INTERRUPTED)
    with executed():
        done = subprocess.run(
            [sys.executable, "-m", f"examples.{demo}.demo"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
