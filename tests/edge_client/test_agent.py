"""The agent's shell: who may own a device's folder, how it starts and stops, and its last word."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_client.ipc import hold
from edge_client.spool.frames import list_files
from edge_client.spool.queue import Spool
from edge_client.uplink.task_queues import SPOOL, queue_folder
from streams.contract.documents import DeviceState
from streams.contract.errors import UsageError
from streams.runtime.trust import create_key
from tests.compose.messages import received
from tests.compose.reports.test_summary import shown_by, summary
from tests.edge_client.spool.test_queue import flip
from tests.rig.made_up.tiny_task import task as tiny

REFERENCE = f"{Path(__file__).parents[1] / 'rig' / 'made_up' / 'tiny_task.py'}:task"

HOLDER = """
import sys
from pathlib import Path
from edge_client.ipc import hold
handle = hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_one_agent_owns_a_devices_folder_as_long_as_it_lives(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="another agent serves the device"):
            hold(tmp_path)
        ending = threading.Timer(0.5, holder.kill)
        ending.start()
        hold(tmp_path, patience_s=20.0).close()  # an agent waits for a command that reads
        ending.join()
        holder.communicate()
    hold(tmp_path).close()


def run_agent(
    state: Path, meanwhile: Callable[[], None] = lambda: None
) -> tuple[list[str], DeviceState]:
    """An agent without broker and model, stopped when it has started and `meanwhile` was called:
    what it said, and its last state."""
    command = [sys.executable, "-m", "compose.cli.main", "edge", "run", REFERENCE, "--device", "d0"]
    command += ["--state", str(state), "--kafka", "127.0.0.1:1", "--drain", "0.1", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as agent:
        assert agent.stderr is not None
        said = [agent.stderr.readline()]
        while said[-1] and "serving None" not in said[-1]:
            said.append(agent.stderr.readline())
        meanwhile()
        agent.terminate()
        told, rest = agent.communicate(timeout=30)
        said += rest.splitlines()
    assert agent.returncode == 0
    return said, DeviceState.decode(told.encode())


def test_an_agent_tells_of_a_torn_spool_and_stops_without_broker_or_model(tmp_path: Path) -> None:
    folder = tmp_path / "devices" / "d0"
    create_key(tmp_path / "keys" / "signing.pem")
    spool = queue_folder(folder, SPOOL, tiny)
    Spool(spool).declare_lost(2, "disk-full")
    with next(spool.glob("*.seg")).open("ab") as stream:
        stream.write(b"half a frame")
    said, last = run_agent(tmp_path)
    assert any("a torn end of 12 bytes cut off" in line for line in said)
    assert any("2 events stay in the spool" in line for line in said)
    assert not (folder / "agent.sock").exists()
    assert (last.phase, last.produced, last.pending) == ("stopped", 2, 2)


@pytest.mark.parametrize(("damaged", "pending"), [(False, 6), (True, 4)])
def test_what_a_running_agents_spool_has_lost_is_missing_in_the_account_that_a_user_sees(
    tmp_path: Path, damaged: bool, pending: int
) -> None:
    folder = queue_folder(tmp_path / "devices" / "d0", SPOOL, tiny)
    create_key(tmp_path / "keys" / "signing.pem")
    spool = Spool(folder)
    for i in range(3):
        spool.append(2, b"x" * 50, mark=i)

    def damage() -> None:
        (file,) = list_files(folder)
        if damaged:
            flip(file.path, file.path.stat().st_size - 3)  # in the last frame, of two events

    _, last = run_agent(tmp_path, damage)
    assert (last.phase, last.produced, last.delivered, last.dropped) == ("stopped", 6, 0, {})
    assert last.pending == pending
    accounted = last.delivered + sum(last.dropped.values()) + last.pending
    assert (last.produced == accounted) is not damaged

    found = summary(received("fleet", "d0", last), server={})
    assert found.balanced is not damaged
    assert ("The event account of d0 does not balance" in shown_by(found)) is damaged
