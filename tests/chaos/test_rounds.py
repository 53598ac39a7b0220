"""What takes part in a federated run is killed by SIGKILL while rounds go on: the run ends by
itself, all rounds done, and only what the killed part had to say is missing.

Real Flower processes and a real Kafka; the rig starts again what a supervisor would. Nothing is
shortened: leases and silences end. The last case is the whole of `tidewheel up`.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from compose.launcher import flower_processes
from federation.controller.flwr_cli import Submission
from federation.controller.settings import ControllerSettings
from federation.registry.registry import Registry
from streams.contract.documents import RoundEvent
from streams.contract.task import Task
from streams.contract.topics import topic_specs
from streams.contract.work import WorkReply, WorkRequest
from streams.kafka.admin import ensure_topics
from streams.kafka.settings import BrokerSettings
from tests.e2e.conftest import cache, kafka_place
from tests.federation.conftest import key, pilot_cache, registry, sockets, tiny
from tests.rig.made_up.own_task import own_task
from tests.rig.processes.fleet import Place, until
from tests.rig.processes.flower import (
    FlowerStack,
    controlled,
    journals,
    wait_for,
)
from tests.rig.processes.stand_in_agent import StandInAgent

__all__ = ["cache", "kafka_place", "key", "pilot_cache", "registry", "sockets", "tiny"]
ROUNDS = 3
LONG = 40  # rounds, which take longer than a minute
DEVICES = ("d0", "d1", "d2")

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]


class HeldAgent(StandInAgent):
    """Answers a training of round `held` only when it may."""

    held = 0
    may = threading.Event()

    def _work(self, request: WorkRequest, body: bytes) -> tuple[WorkReply, bytes]:
        if request.op == "train" and request.round == self.held:
            assert self.may.wait(120)
        return super()._work(request, body)

    def at_work(self) -> bool:
        return any(r.op == "train" and r.round == self.held for r in self.requests)


@dataclass
class Rig:
    state: Path
    task_ref: str
    registry: Registry
    processes: FlowerStack
    submission: Submission
    agents: list[HeldAgent]
    may: threading.Event

    def hold(self, number: int, *devices: str) -> None:
        """Let these answer the training of a round only after self.may."""
        for agent in self.agents:
            agent.held = number if agent.device in devices else 0
            agent.may = self.may

    def wait_until_held(self) -> None:
        held = [agent for agent in self.agents if agent.held]
        wait_for("they are at work", lambda: all(a.at_work() for a in held), 120)

    def wait_for_verdict(self, runs: int) -> list[list[RoundEvent]]:
        """So many runs, the last of which has come to its end; the events of each."""

        def ended() -> bool:
            found = journals(self.state)
            return len(found) == runs and found[-1][-1].kind == "finished"

        wait_for("the run comes to a verdict", ended, 150)
        return journals(self.state)


@pytest.fixture
def task_ref(tmp_path: Path) -> str:
    return own_task(tmp_path)


@pytest.fixture
def failpoint() -> dict[str, str]:
    """More of the environment of ServerApps."""
    return {}


@pytest.fixture
def rig(
    failpoint: dict[str, str],
    kafka: BrokerSettings,
    task_ref: str,
    tiny: Task,
    registry: Registry,
    tmp_path: Path,
    sockets: Path,
) -> Iterator[Rig]:
    """Three devices and a controller that starts one run and takes it up when it dies."""
    ensure_topics(kafka, topic_specs(tiny.id))
    devices = {name: sockets / f"{name}.sock" for name in DEVICES}
    may = threading.Event()
    with ExitStack() as stack:
        agents = [HeldAgent(tiny, name, path) for name, path in devices.items()]
        for agent in agents:
            stack.enter_context(agent)
        env = {"TIDEWHEEL_KAFKA": kafka.bootstrap, **failpoint}
        processes = stack.enter_context(FlowerStack(tmp_path, devices, env))
        stack.callback(may.set)
        config = {"task": task_ref, "state": str(tmp_path), "rounds": ROUNDS, "epochs": 6}
        submission = flower_processes.submission(
            tmp_path, processes.address, {**config, "minimum-nodes": len(DEVICES)}
        )
        yield Rig(tmp_path, task_ref, registry, processes, submission, agents, may)
    assert processes.members() == []


def start(rig: Rig, kafka: BrokerSettings, stack: ExitStack) -> None:
    stack.enter_context(
        controlled(
            ControllerSettings(
                task_ref=rig.task_ref,
                broker=kafka,
                state=rig.state,
                registry=rig.registry.folder,
                public_keys=(rig.state / "keys" / "signing.pub",),
                signing_key=rig.state / "keys" / "signing.pem",
                submission=rig.submission,
                schedule_s=0.0,
                runs_per_day=1,
            )
        )
    )


def admitted(*runs: list[RoundEvent]) -> list[tuple[int, str]]:
    return sorted((e.round, e.device) for run in runs for e in run if e.kind == "admitted")


def done(*runs: list[RoundEvent]) -> list[int]:
    return [event.round for run in runs for event in run if event.kind == "aggregated"]


def all_of(*numbers: int) -> list[tuple[int, str]]:
    return [(number, device) for number in numbers for device in DEVICES]


def test_a_superlink_that_is_killed_in_a_round(rig: Rig, kafka: BrokerSettings) -> None:
    """It has everything in its database, and the others wait for it."""
    rig.hold(2, "d0", "d1", "d2")
    with ExitStack() as stack:
        start(rig, kafka, stack)
        rig.wait_until_held()
        rig.processes.kill("superlink")
        rig.processes.start_superlink()
        rig.may.set()
        [run] = rig.wait_for_verdict(1)
    assert done(run) == [1, 2, 3]
    assert admitted(run) == all_of(1, 2, 3)
    assert run[-2].kind == "promoted"


def test_a_supernode_that_is_killed_in_a_round(rig: Rig, kafka: BrokerSettings) -> None:
    rig.hold(2, "d2")
    with ExitStack() as stack:
        start(rig, kafka, stack)
        rig.wait_until_held()
        rig.processes.kill("d2")
        rig.processes.start_node("d2")
        rig.may.set()
        [run] = rig.wait_for_verdict(1)
    assert done(run) == [1, 2, 3]
    others = [pair for pair in admitted(run) if pair[1] != "d2"]
    assert others == [(n, d) for n in (1, 2, 3) for d in ("d0", "d1")]
    assert (1, "d2") in admitted(run)
    assert (2, "d2") not in admitted(run)  # and in 3 it is another node to Flower, without a key
    assert run[-2].kind == "promoted"


def trainer_of(place: Place, device: str) -> int | None:
    """The child of a device's agent that trains, which is there once a request has come."""
    agent = place.find("--device", device)
    for pid, words in place.marked().items():
        if "edge_client.training" in words and parent(pid) == agent:
            return pid
    return None


def supernode_of(place: Place, device: str) -> int | None:
    """The child of a device's agent that a run has invited."""
    for pid, words in place.marked().items():
        if "edge_client.supernode" in words and f'"device":"{device}"' in " ".join(words):
            return pid
    return None


def parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])


def soon(find: Callable[[], int | None]) -> int:
    found: list[int] = []

    def seen() -> bool:
        pid = find()
        found.extend([pid] if pid is not None else [])
        return bool(found)

    wait_for("the process is there", seen, 240)
    return found[0]


def test_a_trainer_and_a_supernode_that_are_killed_under_up(kafka_place: Place) -> None:
    """The trainer dies while it has round 1 to do, the SuperNode, which has a key, when round 2 has
    begun: its agent starts it again, Flower lets it in once its last word is a minute old, and it
    has a part in the rounds that are left."""
    place = kafka_place
    words = ["--devices", "3", "--speed", "30", "--rounds", str(LONG), "--secure"]
    running = place.up("up", *words)
    os.kill(soon(lambda: trainer_of(place, "d0")), signal.SIGKILL)
    until(lambda: 2 in begun(place), "round 2 begins", 120)
    os.kill(soon(lambda: supernode_of(place, "d1")), signal.SIGKILL)
    log = place.state / "logs" / "edge-d1.log"
    until(lambda: log.read_text().count("d1: node ") == 2, "d1 is let in again", 180)
    until(lambda: journals(place.state)[0][-1].kind == "finished", "the run has a verdict", 240)
    running.signal(signal.SIGINT)
    assert running.ends(120) == 0, running.said
    place.nothing_is_left()
    run = journals(place.state)[0]
    assert done(run) == [*range(1, LONG + 1)]
    assert max(e.round for e in run if e.kind == "admitted" and e.device == "d1") > 2
    assert [e.device for e in run if e.kind == "failed" and e.round == 1] == ["d0"]
    assert running.summary()["restarts"] == {}


def begun(place: Place) -> list[int]:
    return [e.round for run in journals(place.state) for e in run if e.kind == "started"]
