"""One state folder, one launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compose.launcher.state_dir import StateDir
from streams.contract.errors import UsageError

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from compose.launcher.state_dir import StateDir
lock = StateDir(Path(sys.argv[1])).lock()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_lock_names_the_holder_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    argv = [sys.executable, "-c", HOLD, str(state)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=f"in use by process {holder.pid}: .*--state"):
            StateDir(state).lock()
        holder.kill()
    with StateDir(state).lock() as mine:
        mine.seek(0)
        assert mine.read() == str(os.getpid())
