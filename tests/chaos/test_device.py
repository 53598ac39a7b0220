"""Devices that are killed, cut off, and left without disk or time, and what the store has then.

Real device processes, a real worker and a Kafka that all cases share. After each case the device
is drained: produced = delivered + dropped, by reason, and the store has each delivered event once
and each declaration. After each death produced = delivered + dropped + pending, with all that is
pending in the spool. TIDEWHEEL_CHAOS_SEED as in test_chaos.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.kafka.settings import BrokerSettings
from streams.segments.segmentation import segments_of
from tests.chaos.test_chaos import Crew, chance
from tests.rig.processes.edge import FILE, Edge, line
from tests.rig.processes.small_disk import fill, small_disk
from tests.rig.processes.workers import Fleet, fleet, until
from tests.rig.servers.proxy import Proxy
from tests.rig.servers.secure_node import SecureNode

__all__ = ["small_disk"]
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
HOUR_US = 3600 * 1_000_000

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


def test_at_its_cap(edge: Edge, node: SecureNode) -> None:
    words = ["--spool-mb", SMALL_MB]
    edge.start(NOWHERE, "--speed", "200", *words)
    until(lambda: edge.written() > 30 * FILE, "some 30 files were begun")
    size = sum(path.stat().st_size for path in edge.spool_folder.glob("*.seg"))
    assert size < 2**20 * float(SMALL_MB) + 20_000
    edge.kill()
    dropped = finish(edge, *words)
    assert dropped.keys() == {"spool-full"}
    assert dropped["spool-full"] > 30


def test_on_a_full_disk_for_a_while(served: Fleet, node: SecureNode, small_disk: Path) -> None:
    edge = Edge(served, "full-disk", small_disk)
    try:
        edge.start(node.settings("plain"), "--speed", "100")
        edge.goes_on()
        filler = fill(small_disk)
        until(lambda: "the spool cannot be written" in edge.log, "the disk is full")
        filler.unlink()
        until(lambda: "the spool can be written again" in edge.log, "the disk has room")
        edge.goes_on()
        fill(small_disk)
        edge.kill()
        filler.unlink()
        assert finish(edge) == {}
    finally:
        edge.end()


def test_with_a_clock_that_is_set_back(edge: Edge, node: SecureNode) -> None:
    """The times of readings go back an hour. Files have times in the future, as those that were
    written before the device's clock was set back: nothing of them is too old. Then the clock is
    right again and they are."""
    task, now_us = edge.served.task, time.time_ns() // 1000
    rows = list(task.readings("d0"))
    readings = [
        row._replace(time_us=start_us + row.time_us)
        for start_us in (now_us - 2 * HOUR_US, now_us - 3 * HOUR_US)
        for row in rows
    ]
    words = ["--spool-age", "1", "--spool-mb", "0.5"]
    edge.start(NOWHERE, "--source", "stdin", "--stay", *words, stdin=subprocess.PIPE)
    assert edge.process is not None
    assert edge.process.stdin is not None
    edge.process.stdin.write(b"".join(map(line, readings)))
    edge.process.stdin.close()
    made = len(list(segments_of(readings, task)))
    until(lambda: edge.running() and edge.serving() and edge.state.produced == made, "all events")
    edge.kill()
    assert len(list(edge.spool_folder.glob("*.seg"))) > 2

    for hours, reasons in ((24, set()), (-2, {"spool-age"})):
        at_s = time.time() + 3600 * hours
        for path in edge.spool_folder.glob("*.seg"):
            os.utime(path, (at_s, at_s))
        edge.start(NOWHERE, "--speed", "50", *words)
        edge.goes_on()
        edge.kill()
        assert edge.look() == reasons
    dropped = finish(edge, *words)
    assert dropped.keys() == {"spool-age"}
    assert dropped["spool-age"] < made  # the first file is where the reader is


def test_where_acknowledgements_are_swallowed(edge: Edge, node: SecureNode) -> None:
    proxy = Proxy(node.proxy_port, node.ports["proxied"])
    try:
        through = node.settings("proxied", bootstrap=f"127.0.0.1:{node.proxy_port}")
        edge.start(through, "--speed", "100")
        edge.goes_on()
        proxy.swallowing = True
        until(lambda: proxy.swallowed > 0, "an acknowledgement is swallowed")
        edge.goes_on(5)
        edge.kill()
        proxy.swallowing = False
        edge.start(through, "--speed", "100")
        edge.goes_on(5)
        proxy.swallowing = True
        swallowed = proxy.swallowed
        until(lambda: proxy.swallowed > swallowed, "an acknowledgement is swallowed")
        until(lambda: "replacing the producer" in edge.log, "the watchdog sees it", 90)
        proxy.swallowing = False
        edge.stop()
        assert edge.check() == {}
    finally:
        proxy.close()


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
