"""Real agents with a version on trial: killed, too late, and what they say of it."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.agent import Agent
from edge_client.inference.engine import Engine
from edge_client.inference.slots import Slots
from edge_client.settings import EdgeSettings
from edge_client.spool.queue import Spool
from edge_client.uplink.task_queues import SPOOL, queue_folder
from federation.evaluation.quantization import make_probe
from federation.registry import publisher
from federation.registry.registry import Registry
from streams.contract.documents import DeviceState
from streams.contract.task import Task, load_task
from streams.contract.topics import FLEET, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from streams.runtime.trust import create_key
from tests.rig.made_up.models import TINY, artifact, hanging, plain, segments, tiny
from tests.rig.processes.agent_process import AgentProcess
from tests.rig.processes.polling import until

TASK = """
from dataclasses import replace
from tests.rig.made_up.tiny_task import task as tiny
task = replace(tiny, name={name!r}, latency_budget_ms={budget})
"""
ROOT = Path(__file__).parents[2]


@dataclass
class Place:
    """A state folder with one device of the tiny task, and the agents started on it."""

    state: Path
    key: Ed25519PrivateKey
    graph: bytes
    reference: str = TINY
    kafka: str = "127.0.0.1:1"
    agents: list[AgentProcess] = field(default_factory=list)

    @property
    def slots(self) -> Path:
        return self.state / "devices" / "d0" / "slots"

    @property
    def spool(self) -> Path:
        return queue_folder(self.state / "devices" / "d0", SPOOL, self.task)

    @property
    def log(self) -> str:
        path = self.state / "agent.log"
        return path.read_text() if path.exists() else ""

    @property
    def task(self) -> Task:
        return load_task(self.reference)

    def version(self, number: int) -> bytes:
        return artifact(self.key, plain(number), number, graph=self.graph, task=self.task)

    def install(self, *numbers: int) -> Slots:
        slots = Slots(self.slots, self.task, [self.key.public_key()])
        slots.open()
        for number in numbers:
            slots.install(self.version(number))
        slots.close()
        return slots

    def start(
        self, *words: str, program: tuple[str, ...] = ("-m", "compose.cli.main"), **environ: str
    ) -> subprocess.Popen[bytes]:
        agent = AgentProcess(
            self.state, "--drain", "1", *words, reference=self.reference, kafka=self.kafka,
            program=program, environ=environ,
        )  # fmt: skip
        self.agents.append(agent)
        return agent.process

    def found(self) -> dict[str, object]:
        return dict(json.loads((self.slots / "slots.json").read_bytes()))


@pytest.fixture
def place(tmp_path: Path, graph: bytes) -> Iterator[Place]:
    found = Place(tmp_path, create_key(tmp_path / "keys" / "signing.pem"), graph)
    yield found
    for agent in found.agents:
        agent.close()


def ends(agent: subprocess.Popen[bytes]) -> int:
    agent.send_signal(signal.SIGTERM)
    return agent.wait(30)


def test_an_agent_killed_three_times_on_a_new_version_serves_the_previous(place: Place) -> None:
    slots = place.install(1, 2)
    old, new = slots.previous, slots.active
    for life in (1, 2, 3):
        agent = place.start()
        until(lambda n=life: place.log.count(f"serving {new}") == n, f"life {life}")  # type: ignore[misc]
        agent.kill()
        agent.wait()
    agent = place.start()
    until(lambda: f"serving {old}" in place.log, "the previous version serves")
    assert f"back from {new} to {old}: crashed: 3 times within 600 s" in place.log
    assert ends(agent) == 0
    assert (place.found()["active"], place.found()["previous"]) == (old, None)
    assert list(place.found()["refused"]) == [new]  # type: ignore[call-overload]
    assert not (place.slots / "serving").exists()


def slow(place: Place, name: str) -> None:
    """No version of this task ever keeps its latency budget."""
    path = place.state / "slow_task.py"
    path.write_text(TASK.format(name=name, budget=1e-6))
    place.reference = f"{path}:task"


@pytest.mark.kafka
def test_the_fleet_is_told_and_what_was_refused_is_not_fetched_again(
    place: Place, kafka: BrokerSettings
) -> None:
    slow(place, "late-releases")
    task, place.kafka = place.task, kafka.bootstrap
    ensure_topics(kafka, topic_specs(task.id))
    registry = Registry(place.state / "registry", task.name, task.version, [place.key.public_key()])
    first = registry.add(place.version(1)).model
    registry.serve(first, place.key, "the first")
    producer = Producer(kafka)
    announced = publisher.announce(producer, registry, None)
    new = registry.add(place.version(2)).model

    def said() -> DeviceState | None:
        reader = Reader(kafka, [topic_name(task.id, FLEET)])
        try:
            states = [DeviceState.decode(message.value) for message in reader.read_to_end()]
        finally:
            reader.close()
        return states[-1] if states else None

    def told(phase: str) -> bool:
        state = said()
        return (
            state is not None
            and state.phase == phase
            and state.active == first
            and state.refused.get(new, "").startswith("late: p99 of 200 answers")
            and (state.error or "").startswith(f"release {new} refused: late")
        )

    agent = place.start("--speed", "50")
    until(lambda: f"serving {first}" in place.log, "it serves the first version")
    registry.serve(new, place.key, "a test")
    announced = publisher.announce(producer, registry, announced)
    until(lambda: told("running"), "the fleet is told")
    assert ends(agent) == 0
    agent = place.start("--speed", "50")
    until(lambda: place.log.count(f"serving {first}") >= 2, "it serves the first version again")
    until(lambda: told("running"), "the fleet is told again")
    assert ends(agent) == 0
    assert place.log.count(f"serving {new}, was {first}") == 1  # fetched once, in its first life
    assert not (place.slots / f"{new}.twa").exists()

    third = registry.add(place.version(3)).model
    registry.serve(third, place.key, "a test")
    publisher.announce(producer, registry, announced)
    producer.close()
    place.start("--speed", "1")
    until(lambda: f"serving {third}, was {first}" in place.log, "another release is installed")


IMPATIENT = """
import sys
import edge_client.agent, edge_client.inference.loop
edge_client.agent.LOOK_S, edge_client.inference.loop.HANGS_S = 0.1, 1.5
sys.argv = sys.argv[1:]
from compose.cli.main import main
main()
"""


def test_an_answer_that_never_comes_ends_the_process_and_counts_against_its_version(
    place: Place,
) -> None:
    place.reference = impatient_task(place.state)
    slots = place.install(1)
    place.graph = hanging(place.graph)
    slots.install(place.version(2))
    slots.close()
    old, new = slots.previous, slots.active
    for life in (1, 2, 3):
        agent = place.start("--source", "stdin", program=("-c", IMPATIENT, "tidewheel"))
        lines = [f"{1_760_000_000_000_000 + 50_000 * i},1,2" for i in range(60)]
        far = [f"{1_760_000_000_000_000 + 50_000 * i},1,2000" for i in range(60, 80)]
        assert agent.stdin is not None
        agent.stdin.write("\n".join(["time_us,x,y", *lines, *far]).encode())
        agent.stdin.close()
        assert agent.wait(60) == 1
        assert place.log.count("an answer does not come back") == life
    assert len(place.found()["crashes_us"]) == 2  # type: ignore[arg-type]
    agent = place.start()
    until(lambda: f"serving {old}" in place.log, "the previous version serves")
    assert f"back from {new} to {old}: crashed: 3 times" in place.log
    assert ends(agent) == 0
    assert Spool(place.spool).account().produced >= 15


HURRIED = """
import sys, threading
import edge_client.agent, edge_client.uplink.uplink
edge_client.agent.LOOK_S, edge_client.uplink.uplink.HANG_S = 2.0, 4.0
sys.argv = sys.argv[1:]
from compose.cli.main import main
"""
HUNG = f"""{HURRIED}
import streams.kafka.producer
edge_client.agent.LOOK_S = 0.3
edge_client.uplink.uplink.HANG_S = 1.0
def connects_never(settings):
    threading.Event().wait()
streams.kafka.producer.Producer = connects_never
main()
"""


def test_an_uplink_that_never_comes_back_ends_the_process_and_no_version_is_to_blame(
    place: Place,
) -> None:
    active = place.install(1).active
    for life in (1, 2, 3):
        agent = place.start("--speed", "5", "--stay", program=("-c", HUNG, "tidewheel"))
        assert agent.wait(60) == 1
        assert place.log.count("the uplink does not come back") == life
        assert place.log.count("in connects_never") == life  # where the thread is
    assert not place.found()["crashes_us"]
    spool = Spool(place.spool).account()
    assert spool.pending == spool.produced > 0
    agent = place.start()
    until(lambda: place.log.count(f"serving {active}") == 4, "the version serves again")
    assert ends(agent) == 0


WITHOUT_PATIENCE = """
import sys
import edge_client.agent
edge_client.agent.LOOK_S, edge_client.agent.HANG_S = 0.5, 4.0
sys.argv = sys.argv[1:]
from compose.cli.main import main
main()
"""


@pytest.mark.kafka
def test_a_version_whose_test_never_ends_is_refused_and_the_next_release_is_installed(
    place: Place, kafka: BrokerSettings
) -> None:
    path = place.state / "endless_task.py"
    path.write_text(TASK.format(name="endless-releases", budget=1000.0))
    place.reference, place.kafka = f"{path}:task", kafka.bootstrap
    ensure_topics(kafka, topic_specs(place.task.id))
    registry = Registry(
        place.state / "registry", place.task.name, place.task.version, [place.key.public_key()]
    )
    model, endless = plain(2), hanging(place.graph, most=-1e9)
    answers = make_probe(
        place.graph,
        {name: value.numpy() for name, value in model.state_dict().items()},
        segments(8),
    )
    second = artifact(place.key, model, 2, graph=endless, task=place.task, probe=answers)
    producer, announced, program = Producer(kafka), None, ("-c", WITHOUT_PATIENCE, "tidewheel")

    def releases(version: bytes) -> str:
        nonlocal announced
        found = registry.add(version).model
        registry.serve(found, place.key, "a test")
        announced = publisher.announce(producer, registry, announced)
        return found

    first = releases(place.version(1))
    agent = place.start("--speed", "5", "--stay", program=program)
    until(lambda: f"serving {first}" in place.log, "it serves the first version")
    hung = releases(second)
    assert agent.wait(60) == 1
    assert place.log.count("the downlink does not come back") == 1
    agent = place.start("--speed", "5", "--stay", program=program)
    until(lambda: place.log.count(f"serving {first}") == 2, "it serves the first version again")
    assert place.found()["refused"] == {hung: "died: the process ended while it was tried"}
    third = releases(place.version(3))
    producer.close()
    until(lambda: f"serving {third}, was {first}" in place.log, "the next release is installed")
    assert ends(agent) == 0
    assert place.log.count("does not come back") == 1


def test_an_agent_that_was_stopped_for_long_does_not_hang(place: Place) -> None:
    place.install(1)
    program = ("-c", f"{HURRIED}main()", "tidewheel")
    agent = place.start("--speed", "5", "--stay", program=program)
    spool = place.spool

    def goes_on() -> None:
        size = sum(path.stat().st_size for path in spool.glob("*.seg"))
        until(lambda: sum(p.stat().st_size for p in spool.glob("*.seg")) > size, "events come")

    goes_on()
    agent.send_signal(signal.SIGSTOP)
    stopped_s = time.monotonic()
    until(lambda: time.monotonic() > stopped_s + 5.0, "it was stopped for longer than HANG_S")
    agent.send_signal(signal.SIGCONT)
    goes_on()
    goes_on()
    assert "does not come back" not in place.log
    assert ends(agent) == 0


def impatient_task(folder: Path) -> str:
    """The tiny task with a budget of 20 ms, the tenth part of what is a hanging answer."""
    path = folder / "impatient.py"
    path.write_text(TASK.format(name="tiny", budget=20.0))
    return f"{path}:task"


def test_an_engine_that_raises_gives_its_place_to_the_previous(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = place.install(1, 2)
    trusted = (place.state / "keys" / "signing.pub",)
    folder, broker = place.state / "devices" / "d0", BrokerSettings(bootstrap="127.0.0.1:1")
    settings = EdgeSettings(TINY, "d0", folder, broker, trusted, speed=0, passes=1, drain_s=0)
    agent = Agent(settings, tiny)
    run = Engine.run

    def broken(engine: Engine, segment: np.ndarray) -> np.ndarray:
        if engine.model == slots.active:
            raise RuntimeError("no kernel")
        return run(engine, segment)

    monkeypatch.setattr(Engine, "run", broken)
    try:
        agent._answers.run()
        agent._writer.write()
        state = agent.state()
    finally:
        agent._service._socket.close()
        agent._lock.close()
    assert (state.active, state.previous) == (slots.previous, None)
    assert state.refused == {slots.active: "failed: no kernel"}
    assert state.skipped == {"answer-failed": 1}
    assert state.accuracy[str(slots.previous)].answers > 100
