"""Who may take part where the SuperLink has TLS and knows its SuperNodes: real Flower processes."""

import json
import stat
from pathlib import Path

import pytest

from compose.launcher import broker, flower_processes
from compose.launcher.certificates import make_certificates
from compose.launcher.node_registry import make_key, public_path
from federation.controller.flwr_cli import Submission
from streams.contract.errors import ProcessFailed
from tests.compose.cli.test_cli import tidewheel
from tests.rig.processes.flower import FlowerStack, resident
from tests.rig.processes.polling import until


def node(state: Path, *words: str | Path, code: int = 0) -> str:
    """`tidewheel node …`: what it says, on standard output or in its one line of error."""
    done = tidewheel("node", *words, "--state", state, folder=state.parent)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == (1 if code else 0), done.stderr
    return done.stderr or done.stdout


def online(processes: FlowerStack) -> list[str]:
    return [line.device for line in processes.nodes.lines() if line.status == "online"]


def start_stranger(
    processes: FlowerStack, name: str, ca: Path | None, key: Path | None = None
) -> None:
    """A SuperNode that calls itself d0."""
    processes.start(name, resident("d0", Path("/nobody.sock"), processes.address, ca, key))


def test_who_is_not_known_is_refused(tmp_path: Path) -> None:
    with FlowerStack(tmp_path, {}, {}, secure=True) as processes:
        make_key(tmp_path / "unknown")
        foreign = make_certificates(tmp_path / "foreign").ca
        start_stranger(processes, "without-key", processes.ca)
        start_stranger(processes, "unknown", processes.ca, tmp_path / "unknown")
        start_stranger(processes, "plain-text", None)
        start_stranger(processes, "other-ca", foreign, tmp_path / "unknown")
        start_stranger(processes, "no-file", processes.ca, tmp_path / "nothing")
        for name, said in {
            "no-file": f"--node-key {tmp_path / 'nothing'} cannot be read",
            "without-key": "admits registered keys alone, and this device has none",
            "unknown": f"does not admit the key {tmp_path / 'unknown'}: it was not added",
            "other-ca": f"{foreign} is of another CA: pass that of the SuperLink as --superlink-ca",
        }.items():
            assert processes.processes[name].wait(60) == (2 if name == "no-file" else 1)
            assert "Traceback" not in processes.log(name)
            (line,) = [one for one in processes.log(name).splitlines() if "cannot join" in one]
            assert said in line
        again = "Connection attempt failed, retrying"
        until(lambda: again in processes.log("plain-text"), "plain text gets nowhere", 30)
        assert processes.nodes.lines() == []
        for ca in (None, foreign):
            flwr = flower_processes.flwr(tmp_path / "elsewhere", processes.address, ca)
            with pytest.raises(ProcessFailed, match="`flwr list` failed") as caught:
                Submission(flwr, tmp_path).runs()
            assert "\n" not in str(caught.value)
        assert not flower_processes.is_ready(processes.address)
        assert not flower_processes.is_ready(processes.address, ca=foreign)


def test_a_device_is_added_listed_and_removed_by_hand(tmp_path: Path) -> None:
    with FlowerStack(tmp_path, {"d0": Path("/nobody.sock")}, {}, secure=True) as processes:
        assert processes.ca is not None
        until(lambda: online(processes) == ["d0"], "d0 is in", 30)
        where = ["--superlink", processes.address, "--superlink-ca", processes.ca]
        made = tmp_path / "made" / "key"
        make_key(made)
        server = tmp_path / "server"  # a state folder of another hand
        asked = "pass --superlink HOST:PORT (`tidewheel superlink`: 127.0.0.1:8000)"
        assert f"{asked} and its --superlink-ca" in node(server, "list", code=2)
        own = make_certificates(server / "keys").ca
        assert f"{asked} --superlink-ca {own}" in node(server, "add", "pump", code=2)
        added = node(server, "add", "pump", "--public-key", public_path(made), *where)
        assert added == "pump is registered\n"
        assert "is registered already" in node(server, "add", "pump", "--public-key",
                                               public_path(made))  # fmt: skip
        assert "is registered: tidewheel edge run --node-key" in node(server, "add", "crane")
        key = server / "keys" / "nodes" / "crane" / "key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        listed = json.loads(node(server, "list", "--json"))
        assert [(line["device"], line["status"]) for line in listed] == [
            ("crane", "registered"), ("pump", "registered"), ("", "online"),
        ]  # fmt: skip
        assert listed[0]["fingerprint"].startswith("SHA256:")
        assert "registered" in node(server, "list")
        assert "another key" in node(server, "add", "pump", code=2)
        assert node(server, "remove", "pump") == "pump is no longer registered\n"
        assert "was not added" in node(server, "remove", "pump", code=2)
        nobody = ["--superlink", f"127.0.0.1:{broker.free_ports(1)[0]}"]
        assert "`flwr supernode list` failed" in node(server, "list", *nobody, code=1)
        node(tmp_path, "remove", "d0")
        processes.processes["d0"].wait(30)  # it ends when it is refused
        start_stranger(processes, "anew", processes.ca, made)
        assert processes.processes["anew"].wait(30) == 1
        assert "does not admit the key" in processes.log("anew")
