"""A device's SuperExec: what it forks, what is left of a fork, and when it ends itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from edge_client.superexec import Forking
from tests.polling import until

# A SuperExec whose ClientApps write down who they are; one of them waits to be killed, and one
# ends with an error.
SUPEREXEC = """
import os, pathlib, signal, sys, time
from types import SimpleNamespace
from flwr.supercore.exit import exit_handler
from flwr.supernode.runtime import run_clientapp
from edge_client.superexec import Forking

folder = pathlib.Path(sys.argv[1])

def app(address, token, insecure, certificates, parent):
    default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    left = len(exit_handler.registered_exit_handlers)
    told = folder / f"{token}.part"
    told.write_text(f"{os.getpid()} {parent} {default} {left} {certificates}")
    told.rename(folder / token)
    if token == "killed":
        time.sleep(300)
    if token == "failed":
        raise RuntimeError("no model")
    sys.exit(0)

run_clientapp.run_clientapp = app
exit_handler.add_exit_handler(lambda: (folder / "handler").touch())
signal.signal(signal.SIGTERM, lambda *_: None)
forking = Forking("clientapp", "failed: {}".format, lambda: "accepted",
                  lambda spec, why: (folder / f"{spec.token}.lost").write_text(why))
forking.watch(os.getppid())
for token in ("one", "two", "killed", "failed"):
    spec = SimpleNamespace(task_type="clientapp", runtime_api_address="x", token=token,
                           insecure=True, root_certificates_path=None, parent_pid=os.getpid())
    assert forking.launch(spec) == "accepted"
(folder / "ready").touch()
while True:
    forking.reconcile()
    time.sleep(0.02)
"""


def children(pid: int) -> list[int]:
    """Of a process: those that run and those that were not waited for."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SUPEREXEC, str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_each_task_gets_a_fork_of_which_nothing_is_left(tmp_path: Path) -> None:
    process = start(tmp_path)
    try:
        until(lambda: (tmp_path / "killed").exists(), "the forks have begun", 30)
        os.kill(int((tmp_path / "killed").read_text().split()[0]), signal.SIGKILL)
        until(lambda: not children(process.pid), "all forks have been waited for", 30)
        told = [(tmp_path / name).read_text().split() for name in ("one", "two", "killed")]
        assert len({pid for pid, *_ in told}) == 3
        expected = [str(process.pid), "True", "0", "None"]  # its parent, and nothing inherited
        assert [rest for _, *rest in told] == [expected] * 3
        assert process.poll() is None
        lost = {path.name: path.read_text() for path in tmp_path.glob("*.lost")}
        assert lost == {"killed.lost": "the ClientApp was killed by signal 9"}
    finally:
        process.kill()
        _, said = process.communicate(timeout=10)
    assert "RuntimeError: no model" in said
    assert not (tmp_path / "handler").exists()


def test_it_ends_with_its_supernode(tmp_path: Path) -> None:
    code = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', '''{SUPEREXEC}'''"
    )
    node = subprocess.Popen(
        [sys.executable, "-c", f"{code}, sys.argv[1]]); time.sleep(300)", str(tmp_path)]
    )
    try:
        until(lambda: (tmp_path / "ready").exists(), "it runs", 30)
        [pid] = children(node.pid)
    finally:
        node.kill()
        node.wait(10)
    until(lambda: not Path(f"/proc/{pid}").exists(), "the SuperExec has ended", 30)
    os.kill(int((tmp_path / "killed").read_text().split()[0]), signal.SIGKILL)


def test_a_task_of_another_kind_is_not_run() -> None:
    forking = Forking("clientapp", "failed: {}".format, lambda: "accepted", lambda *_: None)
    assert forking.get_eligible_capacity({"clientapp", "agentapp"}) == ({"clientapp"}, set())
    said = forking.launch(SimpleNamespace(task_type="agentapp"))
    assert said == "failed: a device runs no agentapp"
