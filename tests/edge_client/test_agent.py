"""The agent's shell: who may own a device's folder, and how it starts and stops."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge_client.control.device_lock import hold
from edge_client.spool.queue import Spool
from streams.contract.documents import DeviceState
from streams.contract.errors import UsageError
from streams.runtime.key_files import create_key

REFERENCE = f"{Path(__file__).parents[1] / 'fakes' / 'tiny_task.py'}:task"

HOLDER = """
import sys
from pathlib import Path
from edge_client.control.device_lock import hold
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


def test_an_agent_tells_of_a_torn_spool_and_stops_without_broker_or_model(tmp_path: Path) -> None:
    folder = tmp_path / "devices" / "d0"
    create_key(tmp_path / "keys" / "signing.pem")
    Spool(folder / "spool").declare_lost(2, "disk-full")
    with next((folder / "spool").glob("*.seg")).open("ab") as stream:
        stream.write(b"half a frame")
    command = [sys.executable, "-m", "compose.cli.main", "edge", "run", REFERENCE, "--device", "d0"]
    command += ["--state", str(tmp_path), "--kafka", "127.0.0.1:1", "--drain", "0.1", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as agent:
        assert agent.stderr is not None
        said = [agent.stderr.readline()]
        while said[-1] and "serving None" not in said[-1]:
            said.append(agent.stderr.readline())
        agent.terminate()
        told, rest = agent.communicate(timeout=30)
        said += rest.splitlines()
    assert agent.returncode == 0
    assert any("a torn end of 12 bytes cut off" in line for line in said)
    assert any("2 events stay in the spool" in line for line in said)
    assert not (folder / "agent.sock").exists()
    last = DeviceState.decode(told.encode())
    assert (last.phase, last.produced, last.pending) == ("stopped", 2, 2)
