"""The agent's shell: who may own a device's folder, how it starts and stops, and its last word."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compose.launcher.certificates import make_certificates
from compose.launcher.node_registry import make_key, public_path
from edge_client import agent, participation
from edge_client.ipc import hold
from edge_client.settings import EdgeSettings
from edge_client.spool.frames import list_files
from edge_client.spool.queue import Spool
from edge_client.uplink.task_queues import SPOOL, queue_folder
from streams.contract.documents import DeviceState
from streams.contract.errors import UsageError
from streams.contract.invitations import Invitation, sign_invitation
from streams.kafka.settings import BrokerSettings
from streams.runtime.trust import create_key
from tests.compose.cli.test_cli import tidewheel
from tests.compose.messages import received
from tests.compose.reports.test_summary import shown_by, summary
from tests.edge_client.spool.test_queue import flip
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.flower import FlowerStack
from tests.rig.processes.polling import until

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


def test_a_device_that_a_superlink_does_not_admit_says_why_until_it_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign CA, then a key that was not added, then all is right."""
    monkeypatch.setattr(agent, "LOOK_S", 0.1)
    monkeypatch.setattr(participation, "AGAIN_S", 0.1)
    private = create_key(tmp_path / "keys" / "signing.pem")
    key, ca, folder = tmp_path / "node-key", tmp_path / "ca.pem", tmp_path / "devices" / "d0"
    make_key(key)
    ca.write_bytes(make_certificates(tmp_path / "foreign").ca.read_bytes())
    trusted, broker = (tmp_path / "keys" / "signing.pub",), BrokerSettings(bootstrap="127.0.0.1:1")
    settings = EdgeSettings(REFERENCE, "d0", folder, broker, trusted, superlink_ca=ca, node_key=key)
    with FlowerStack(tmp_path / "server", {}, {}, secure=True) as server:
        device = agent.Agent(settings, tiny)
        thread = threading.Thread(target=device.run)
        thread.start()
        try:
            about = {
                "task": "tiny", "task_version": 1, "run": "7", "superlink": server.address,
                "devices": ["d0"], "issued_us": time.time_ns() // 1000, "lease_s": 300.0,
                "pull_s": 0.1,
            }  # fmt: skip
            invitation = sign_invitation(Invitation.of_fields(about), private).encode()
            device._runs.receive(invitation)
            assert "joins run 7" in status(tmp_path)
            for text in (f"{ca} is of another CA: pass that of", "(`tidewheel node add d0`)"):
                until(lambda text=text: text in (device.state().error or ""), text, 60)
                said = status(tmp_path)
                assert said.startswith("d0: cannot join runs: the ")
                assert text in said.splitlines()[0]
                assert "joins run" not in said
                found = shown_by(summary(received("fleet", "d0", device.state()), server={}))
                assert text in " ".join(found.split())
                assert server.ca is not None
                ca.write_bytes(server.ca.read_bytes())
            server.nodes.add("d0", public_path(key))
            until(lambda: device.state().node is not None, "it has joined", 60)
            assert device._runs.error is None  # the state's may name the broker, which is absent
            assert "takes part in run 7" in status(tmp_path)
        finally:
            device.stop()
            thread.join(60)


def status(state: Path) -> str:
    """What `tidewheel edge status` prints."""
    done = tidewheel("edge", "status", REFERENCE, "--device", "d0", "--state", state, folder=state)
    assert done.returncode == 0, done.stderr
    return done.stdout
