"""Devices that are killed and cut off, and what the store has then.

Real device processes, a real worker and a Kafka that all cases share. After each case the device
is drained: produced = delivered + dropped, by reason, and the store has each delivered event once
and each declaration. After each death produced = delivered + dropped + pending, with all that is
pending in the spool. TIDEWHEEL_CHAOS_SEED as in test_chaos.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.kafka.settings import BrokerSettings
from tests.chaos.test_chaos import Crew, chance
from tests.rig.processes.edge import Edge
from tests.rig.processes.workers import Fleet, fleet
from tests.rig.servers.secure_node import SecureNode

KILLS = 30
OUTAGE_S = 60.0  # and the time in which Kafka starts
OFFLINE = [  # where a device is at its cap that reaches no broker, and the times it comes there
    "spool-step-1:2",
]
ONLINE = [
    "spool-step-2:2",
    "spool-step-3:9",
    "spool-step-4:9",
    "spool-step-5:9",
    "uplink-step-1:3",
    "uplink-step-2:3",
    "uplink-step-3:3",
    "uplink-step-4:3",
]
SMALL_MB = "0.1"
NOWHERE = BrokerSettings(bootstrap="127.0.0.1:1")

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureNode]:
    made = SecureNode(tmp_path_factory.mktemp("node"))
    yield made
    made.kill()


@pytest.fixture(scope="module")
def crew(node: SecureNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """One worker, which is started again where an outage of the broker ends it."""
    with fleet(node.settings("plain"), tmp_path_factory.mktemp("fleet"), 1) as served:
        made = Crew(served)
        made.start("w0")
        made.until(made.shares_all, "the worker is ready")
        yield made


@pytest.fixture
def served(crew: Crew) -> Fleet:
    return crew._served


@pytest.fixture
def edge(request: pytest.FixtureRequest, served: Fleet, tmp_path: Path) -> Iterator[Edge]:
    """A device named after the case."""
    name = request.node.originalname.removeprefix("test_")[:40].replace("_", "-")
    made = Edge(served, name, tmp_path / "state")
    try:
        yield made
    except BaseException as exc:
        exc.add_note(f"the end of its log: {made.log[-3000:]}")
        raise
    finally:
        made.end()


def finish(edge: Edge, *words: str) -> dict[str, int]:
    """Start the device once more, let it go on, drain it, and check."""
    edge.start(edge.served.broker, "--speed", "50", *words)
    edge.goes_on()
    edge.stop()
    return edge.check()


def test_killed_at_each_step_of_append_send_and_acknowledge(edge: Edge, node: SecureNode) -> None:
    words = ["--speed", "150", "--spool-mb", SMALL_MB]
    for point in OFFLINE:
        edge.start(NOWHERE, *words, failpoint=point)
        edge.dies()
    for point in ONLINE:
        edge.start(node.settings("plain"), *words, failpoint=point)
        edge.dies()
    dropped = finish(edge, *words)
    assert dropped.keys() == {"spool-full"}


def test_killed_at_random(edge: Edge, node: SecureNode) -> None:
    with chance() as dice:
        for _ in range(KILLS):
            edge.start(node.settings("plain"), "--speed", "100", "--spool-mb", SMALL_MB)
            edge.goes_on(dice.randrange(1, 12))
            edge.kill()
        dropped = finish(edge, "--spool-mb", SMALL_MB)
        # on a busy machine the spool may come to its cap before there is a connection
        assert dropped.keys() <= {"spool-full"}, dropped


def test_whose_broker_is_killed_in_mid_send(edge: Edge, node: SecureNode, crew: Crew) -> None:
    """The last case: all others need the broker."""
    edge.start(node.settings("plain"), "--speed", "100")
    edge.goes_on(5)
    node.kill()
    back_at = time.monotonic() + OUTAGE_S
    edge.goes_on(5)
    crew.until(lambda: time.monotonic() >= back_at, "the outage is over", OUTAGE_S + 5)
    node.start()
    edge.goes_on(5)
    edge.stop()
    assert edge.check(crew.until) == {}
