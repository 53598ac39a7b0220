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


def test_a_second_lock_of_the_same_process_is_refused_too(tmp_path: Path) -> None:
    layout = StateDir(tmp_path)
    with layout.lock(), pytest.raises(UsageError, match=f"process {os.getpid()}"):
        layout.lock()
    layout.lock().close()


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written: .*--state"):
        StateDir(tmp_path / "file" / "state").lock()


def test_everything_lies_in_the_state_folder(tmp_path: Path) -> None:
    layout = StateDir(tmp_path)
    places = {
        layout.signing_key, layout.public_key, layout.registry, layout.store, layout.logs,
        layout.device("a"), layout.device("b"),
    }  # fmt: skip
    assert len(places) == 7
    assert all(place.is_relative_to(tmp_path) for place in places)
