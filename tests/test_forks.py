"""Processes that are forked are as processes that are executed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rig.processes.forks import Forked

TELL = """
import json, os, sys
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
words = [w for w in open("/proc/self/cmdline").read().split("\\0") if w]
environ = [w for w in open("/proc/self/environ").read().split("\\0") if w]
print(json.dumps([
    os.getppid(), os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid(), os.getcwd(),
    sys.argv, sys.path[0], sys.orig_argv[1:2], words[-2:], "MARK=here" in environ,
    os.environ["MARK"], os.environ.get("HOME"), sys.stdin.read(), __name__,
]))
"""


def start(code: str, *argv: str, **given: Any) -> Forked:
    return Forked([sys.executable, "-c", code, *argv], **given)


@pytest.mark.parametrize("session", [False, True])
def test_a_process_has_what_it_was_given(tmp_path: Path, session: bool) -> None:
    process = start(
        TELL, "a", "b", cwd=tmp_path, env={"MARK": "here"}, start_new_session=session,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(b"input", 60)
    assert (process.returncode, err) == (0, b"")
    parent, leads, group, cwd, *more = json.loads(out)
    assert (parent, leads, group, cwd) == (os.getpid(), session, session, str(tmp_path))
    assert more == [
        ["-c", "a", "b"], "", ["-c"], ["a", "b"], True, "here", None, "input", "__main__"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "wanted", "said"),
    [
        ("", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import atexit; atexit.register(print, 'end', file=__import__('sys').stderr)", 0, "end\n"),
        ("raise KeyboardInterrupt", -signal.SIGINT, None),
        ("1 / 0", 1, None),
    ],
)
def test_it_ends_as_python_ends(code: str, wanted: int, said: str | None) -> None:
    process = start(code, stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=60)
    assert process.returncode == wanted
    if said is not None:
        assert err.decode() == said
    else:
        assert err.decode().splitlines()[-1].partition(":")[0] in (
            "KeyboardInterrupt", "ZeroDivisionError",
        )  # fmt: skip
