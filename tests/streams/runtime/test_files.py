"""A file is replaced whole, by however many writers at a time."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streams.runtime import files
from streams.runtime.files import replacing, write_atomic


def test_two_that_write_one_file_at_a_time_leave_that_of_the_last(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as first:
        first.write(b"first")
        with replacing(path) as second:
            second.write(b"second, which is longer")
        assert path.read_bytes() == b"second, which is longer"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
from streams.runtime.files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_half_written_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first write an hour later: not sooner, as it may still be written, and no other file
    whatever its age."""
    path, other = tmp_path / "file", tmp_path / ".file.tmp"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    other.touch()
    (left,) = set(tmp_path.iterdir()) - {other}
    write_atomic(path, b"new")
    assert left.exists()
    old = time.time() - files.LEFT_S - 60
    for each in (left, other):
        os.utime(each, (old, old))
    write_atomic(path, b"again")
    assert left.exists(), "a folder is searched once an hour"
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + files.LEFT_S)
    with replacing(path) as file:
        file.write(b"at last")
    assert set(tmp_path.iterdir()) == {path, other}


def test_a_thread_may_write_into_a_new_folder_at_any_step_of_another(tmp_path: Path) -> None:
    """A collector's callback stands for the other thread: it runs wherever an object is made."""
    folders, writes, seen = itertools.count(), False, gc.get_threshold()

    def other(phase: str, info: dict[str, int]) -> None:
        nonlocal writes
        if not writes:
            writes = True
            write_atomic(tmp_path / f"other{next(folders)}" / "file", b"other")
            writes = False

    for number in range(100):
        write_atomic(tmp_path / f"before{number}" / "file", b"before")
    gc.callbacks.append(other)
    gc.set_threshold(1)
    try:
        for number in range(20):
            write_atomic(tmp_path / f"own{number}" / "file", b"own")
    finally:
        gc.set_threshold(*seen)
        gc.callbacks.remove(other)
    assert next(folders) > 20
    assert all((tmp_path / f"own{number}" / "file").read_bytes() == b"own" for number in range(20))
