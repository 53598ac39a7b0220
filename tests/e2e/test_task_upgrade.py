"""A task that is edited between two runs of a real device, with real workers of both versions: no
crash, no rollback, and each event is scored once, by the worker of its own version."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from compose.reports import dead_letters
from compose.reports.follower import read_lag
from edge_client.inference.slots import SlotState
from streams.contract.documents import DeviceState
from streams.contract.task import load_task
from streams.contract.topics import FLEET
from streams.kafka.settings import BrokerSettings
from streams.runtime.trust import create_key
from tests.compose.cli.test_cli import port_without_listener
from tests.rig.made_up.models import artifact, plain
from tests.rig.processes.edge import Edge
from tests.rig.processes.workers import (
    Fleet,
    all_published,
    check_topics,
    fleet,
    stop,
    until,
    write_teacher,
)

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]
SAMPLED = ("--speed", "100", "--metered", "0.5")


@pytest.fixture
def nowhere() -> BrokerSettings:
    return BrokerSettings(bootstrap=f"127.0.0.1:{port_without_listener()}")


@pytest.fixture
def old(kafka: BrokerSettings, tmp_path: Path) -> Iterator[Fleet]:
    (tmp_path / "old").mkdir()
    with fleet(kafka, tmp_path / "old", 1) as made:
        yield made


@pytest.fixture
def new(old: Fleet, tmp_path: Path) -> Iterator[Fleet]:
    """The fleet of version 2, without segments: its own state folder and store."""
    folder = tmp_path / "new"
    folder.mkdir()
    text = (old.folder / "task.py").read_text()
    edited = text.replace("name=", "version=2, upload='prediction', name=")
    (folder / "task.py").write_text(edited)
    task = load_task(f"{folder / 'task.py'}:task")
    write_teacher(task, folder)
    made = Fleet(old.broker, folder, task, 1)
    yield made
    made.end()


@pytest.fixture
def edge(old: Fleet, tmp_path: Path) -> Iterator[Edge]:
    made = Edge(old, "edited", tmp_path / "state")
    yield made
    made.end()


def update(edge: Edge, new: Fleet) -> None:
    """Give the device the new task file and the first model of version 2."""
    key = create_key(edge.folder / "keys" / "signing.pem")
    (edge.folder / "model.twa").write_bytes(artifact(key, plain(1), 2, task=new.task))
    edge.served, edge.produced = new, 0


def test_an_edited_task_is_another_one_beside_the_old_one_until_that_is_drained(
    old: Fleet, new: Fleet, edge: Edge, nowhere: BrokerSettings
) -> None:
    edge.start(nowhere, *SAMPLED)
    edge.goes_on(8)
    edge.kill()  # with events and drops of version 1 in its spool
    left, epoch = edge.produced, edge.state.epoch
    old.start("old")
    new.start("new")  # the first command
    old.ready("old", [0])
    new.ready("new", [0])
    update(edge, new)  # the second
    for _ in range(3):  # as many crashes as a version on trial may have
        edge.start(nowhere, *SAMPLED, "--drain", "0.1")
        until(lambda: edge.running() and edge.serving(), "the device serves the new version")
        edge.goes_on()
        edge.stop()  # not a crash
    edge.start(new.broker, *SAMPLED)
    edge.goes_on()

    def said() -> DeviceState:
        return DeviceState.decode(old.read(FLEET)[-1].value)

    until(lambda: bool(old.read(FLEET)) and not said().pending, "nothing is pending of version 1")
    edge.stop()
    slots = SlotState.decode((edge.device_folder / "slots" / "slots.json").read_bytes())
    assert (slots.crashes_us, slots.refused, slots.active is None) == ([], {}, False)

    assert edge.check().keys() == {"metered"}  # each event of version 2 is in the new store once
    last = said()
    assert (last.epoch, last.phase, last.produced) == (epoch, "stopped", left)
    assert last.delivered + sum(last.dropped.values()) == left
    edge.served = old
    closed = {"rows": last.delivered, **last.dropped}
    until(lambda: edge.stored(epoch) == closed, f"{closed} in the old store")
    assert len(old.scored()) == len(set(old.scored())) == last.delivered
    for served in (old, new):
        until(lambda served=served: all_published(served), "every row is published")
        check_topics(served)
        assert read_lag(served.broker, served.task).messages == 0
        assert dead_letters.read_letters(served.broker, served.task.id) == []
    assert stop(old.workers[0]) == 0  # the third
    assert new.workers[0].poll() is None


def test_a_worker_of_another_version_does_not_start_on_the_store(old: Fleet, new: Fleet) -> None:
    old.start("old")
    old.ready("old", [0])
    new.place = str(old.store)
    assert new.start("new").wait(60) != 0
    assert f"is of {old.task.id}, not of {new.task.id}: use another --store" in new.log("new")
