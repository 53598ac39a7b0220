"""A device's part in federated runs: invitations start real SuperNodes at a real SuperLink."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client import participation
from edge_client.ipc import socket_path
from edge_client.participation import Joining, Participation
from streams.contract.invitations import Invitation, SignedInvitation, sign_invitation
from tests.rig.made_up.models import tiny
from tests.rig.processes.flower import FlowerStack
from tests.rig.processes.polling import until
from tests.rig.processes.stand_in_agent import StandInAgent

KEY = Ed25519PrivateKey.generate()


@dataclass
class Device:
    """d0 with its agent's socket; `now` is its clock, microseconds count up with each
    invitation."""

    runs: Participation
    agent: StandInAgent
    superlink: str
    working: list[bool]
    interrupted: list[bool]
    now: list[float]
    issued: list[int] = field(default_factory=lambda: [int(time.time() * 1e6)])

    def invite(self, run: str = "7", key: Ed25519PrivateKey = KEY, **changes: object) -> bytes:
        """Send an invitation; return its bytes."""
        self.issued[0] += 1
        about = {
            "task": "tiny", "task_version": 1, "run": run, "superlink": self.superlink,
            "devices": ["d0"], "issued_us": self.issued[0], "lease_s": 300.0, "pull_s": 0.1,
        }  # fmt: skip
        found = Invitation.of_fields({**about, **changes})
        value = sign_invitation(found, key).encode()
        self.runs.receive(value)
        return value

    def joins(self) -> None:
        until(lambda: self.agent.node is not None, "the SuperNode has joined", 60)

    def child(self) -> int:
        """Its only SuperNode, once it is there."""
        until(lambda: len(self.children()) == 1, "there is a SuperNode", 30)
        [pid] = self.children()
        return pid

    def children(self) -> list[int]:
        """The SuperNodes of this process."""
        found = []
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                found += [child.pid] * ("edge_client.supernode" in " ".join(child.cmdline()))
        return found


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address; no test kills it."""
    with FlowerStack(tmp_path_factory.mktemp("superlink"), {}, {}) as processes:
        yield processes.address


@pytest.fixture
def device(tmp_path: Path, superlink: str) -> Iterator[Device]:
    path = socket_path(tmp_path)
    working, interrupted, now = [False], [False], [0.0]
    with StandInAgent(tiny, "d0", path) as agent:
        runs = Participation(
            tiny, "d0", tmp_path, path, lambda: [KEY.public_key()], Joining(),
            lambda: working[0], lambda: interrupted.__setitem__(0, True), lambda: now[0],
        )  # fmt: skip
        found = Device(runs, agent, superlink, working, interrupted, now)
        yield found
        runs.stop()
        assert found.children() == []


def test_an_invitation_starts_one_supernode_which_leaves_when_the_run_ends(device: Device) -> None:
    for _ in range(100):
        device.invite()
    device.joins()
    assert len(device.children()) == 1
    assert device.runs.run == "7"
    device.invite(ended=True)
    assert (device.runs.run, device.children()) == (None, [])
    assert not device.interrupted[0]


@pytest.mark.parametrize(("memory_mb", "unable"), [(0, None), (2000, None), (2001, "2000 MB of")])
def test_a_machine_without_the_memory_says_that_it_cannot_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_mb: int, unable: str | None
) -> None:
    monkeypatch.setattr(participation, "memory_of_machine", lambda: 2_000_000_000)
    task = replace(tiny, training=replace(tiny.training, memory_mb=memory_mb))
    runs = Participation(
        task, "d0", tmp_path, tmp_path / "agent.sock", lambda: [KEY.public_key()], Joining(),
        lambda: False, lambda: None,
    )  # fmt: skip
    assert (runs.unable or "").startswith(unable or "")
    assert (runs.unable is None) == (unable is None)


def test_what_does_not_invite_the_device_starts_nothing_and_is_counted(device: Device) -> None:
    first = device.invite(ended=True)
    device.runs.receive(first)
    device.invite(key=Ed25519PrivateKey.generate())
    device.invite(task_version=2)
    device.invite(issued_us=int(1e6 * (time.time() - 3600)))
    device.invite(superlink="192.0.2.7:9093")  # beyond this machine, without TLS
    device.invite(devices=["d1"])  # somebody else: not counted
    signed = SignedInvitation.decode(device.invite(devices=["d2"]))
    forged = signed.replace(text=signed.text.replace('"d2"', '"d0"'))
    device.runs.receive(forged.encode())
    device.runs.receive(b"{}")
    device.runs.receive(first, live=False)  # read again after an outage of the broker
    assert device.runs.refused == {
        "replayed": 1, "untrusted-key": 1, "task": 1, "expired": 1, "plain-text": 1,
        "signature": 1, "malformed": 1,
    }  # fmt: skip
    assert (device.runs.run, device.children()) == (None, [])


def test_a_replay_starts_nothing_after_a_restart_of_the_agent(
    device: Device, tmp_path: Path
) -> None:
    value = device.invite()
    device.runs.stop()
    again = Participation(
        tiny, "d0", tmp_path, tmp_path / "none", lambda: [KEY.public_key()], Joining(),
        lambda: False, lambda: None,
    )  # fmt: skip
    again.receive(value)
    assert (again.run, again.refused) == (None, {"replayed": 1})


def test_another_run_waits_unless_it_resumes_the_one_that_the_device_is_in(device: Device) -> None:
    device.invite("7")
    device.invite("8")
    assert (device.runs.run, device.runs.refused) == ("7", {"busy": 1})
    device.joins()
    device.working[0] = True
    device.invite("9", replaces="7")
    assert device.runs.run == "9"
    assert device.interrupted[0]
    device.child()


def test_a_training_of_its_own_stops_when_a_run_invites_the_device(device: Device) -> None:
    device.working[0] = True
    device.invite()
    assert device.interrupted[0]
    device.interrupted[0] = False
    device.invite()  # longer: the training is the run's
    assert not device.interrupted[0]


def test_a_supernode_leaves_when_its_lease_ends_unless_it_is_at_work(device: Device) -> None:
    device.invite(lease_s=60.0)
    device.now[0], device.working[0] = 61.0, True
    device.runs.look()
    assert device.runs.run == "7"
    device.working[0] = False
    device.runs.look()
    assert (device.runs.run, device.children()) == (None, [])


def test_a_supernode_that_is_killed_is_started_again_and_later_each_time(device: Device) -> None:
    device.invite()
    waits = []
    for _ in range(3):
        os.kill(device.child(), signal.SIGKILL)
        until(lambda: _gone(device), "it is dead", 30)
        device.runs.look()
        began = device.now[0]
        until(lambda: _restarts(device), "it is started again", 30)
        waits.append(device.now[0] - began)
    assert waits == sorted(waits)
    assert waits[0] >= participation.AGAIN_S
    assert "its SuperNode has ended 3 times, now with code -9" in (device.runs.error or "")
    device.joins()
    device.runs.joined(device.agent.node)
    assert device.runs.error is None


def _gone(device: Device) -> bool:
    return device.children() == []


def _restarts(device: Device) -> bool:
    device.now[0] += 1.0
    device.runs.look()
    return device.children() != []


@pytest.mark.parametrize("refused_s", [60.0, 90.0])
def test_a_refusal_that_a_kill_explains_ends_with_the_run(device: Device, refused_s: float) -> None:
    device.invite()
    device.runs.joined(None, "not admitted")
    assert device.runs.error is None  # by chance, or by a kill
    device.now[0] += refused_s
    device.runs.joined(None, "not admitted")
    assert device.runs.error == "not admitted"
    device.invite(ended=True)
    assert device.runs.error == (None if refused_s < participation.KILLED_S else "not admitted")
    device.now[0] += 60.0
    device.invite(run="9")
    device.runs.joined(None, "not admitted")
    device.invite(run="9", ended=True)
    assert device.runs.error == "not admitted"  # of two short runs, which no kill explains
    device.runs.joined(7)
    assert device.runs.error is None


def test_a_resident_supernode_makes_way_for_that_of_an_invitation(device: Device) -> None:
    joining = Joining(superlink=device.superlink)
    path = device.agent.path
    device.runs = Participation(
        tiny, "d0", path.parent, path, lambda: [KEY.public_key()], joining,
        lambda: False, lambda: None, lambda: device.now[0],
    )  # fmt: skip
    device.runs.look()
    resident = device.child()
    device.joins()
    device.invite()
    assert device.child() != resident
    device.invite(ended=True)
    assert device.children() == []
    device.runs.look()
    os.kill(device.child(), signal.SIGKILL)
    until(lambda: _gone(device), "it is dead", 30)
    until(lambda: _restarts(device), "it is started again", 30)
    device.runs.stop()
    assert not _restarts(device)


@pytest.mark.usefixtures("executed")
def test_a_supernode_ends_with_its_agent(device: Device) -> None:
    """However the agent ends: its input is closed then."""
    device.invite()
    device.joins()
    child = device.runs._child
    assert child is not None
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(30) == 0


@pytest.mark.parametrize(
    ("superlink", "allowed"),
    [
        ("127.0.0.1:1", True), ("localhost:1", True), ("[::1]:1", True),
        ("192.0.2.7:1", False), ("superlink:9093", False), ("127.0.0.1.evil.example:1", False),
    ],
)  # fmt: skip
def test_without_a_ca_only_a_superlink_of_this_machine_is_joined(
    superlink: str, allowed: bool
) -> None:
    assert Joining().allows(superlink) == allowed
    assert Joining(ca=Path("ca.pem")).allows(superlink)
