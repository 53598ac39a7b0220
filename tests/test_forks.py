"""Processes that are forked are as processes that are executed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.rig.processes.forks import ROOT, Forked

STARTER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.rig.processes.forks import Forked
process = Forked([sys.executable, "-c", sys.argv[1]], stdout=sys.stdout)
print("started", process.pid, flush=True)
sys.exit(process.wait())
"""
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


def test_a_kill_ends_it_and_its_outputs() -> None:
    process = start("import time; print('up', flush=True); time.sleep(99)", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert process.poll() is None
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
    assert process.stdout.read() == b""
    process.stdout.close()


def test_it_waits_for_what_it_starts_which_survives_it() -> None:
    """As its child: the exit code arrives, and a kill of the starter alone leaves the other."""
    process = start(STARTER, "import sys; sys.exit(5)", stdout=subprocess.PIPE)
    process.communicate(timeout=60)
    assert process.returncode == 5
    sleeper = "import os, time; print(os.getppid(), flush=True); time.sleep(99)"
    process = start(STARTER, sleeper, stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(2)]
    told = {len(line): line for line in lines}
    pid, parent = int(told[2][1]), int(told[1][0])
    assert parent == process.pid
    process.kill()
    process.wait(20)
    assert Path(f"/proc/{pid}").exists()
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    assert process.stdout.read() == b""  # nobody else has it open
    process.stdout.close()
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_signal_that_is_blocked_stays_so_and_other_files_are_closed() -> None:
    code = (
        "import os, signal\n"
        "print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []), flush=True)\n"
        "print(os.read({0}, 9))\n"
        "try: os.fstat({1})\n"
        "except OSError: print('closed')\n"
    )
    ours, theirs = os.pipe()
    other = os.open(os.devnull, os.O_RDONLY)
    high = os.dup2(other, 200, inheritable=True)
    os.write(theirs, b"hello")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        process = start(code.format(ours, high), pass_fds=[ours], stdout=subprocess.PIPE)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    out, _ = process.communicate(timeout=60)
    for file in (ours, theirs, other, high):
        os.close(file)
    assert out.decode().splitlines() == ["True", "b'hello'", "closed"]
