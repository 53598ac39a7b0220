"""A task that is edited between two runs of a real device, under real workers: no crash, no
rollback, and each event is scored once, by the teacher of its own version."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compose.reports import dead_letters
from compose.reports.lag import read_lag
from edge_client.inference.slots import SlotState
from streams.contract.events.messages import TASK_VERSION
from streams.contract.events.records import version_of
from streams.contract.task import Task
from streams.kafka.settings import BrokerSettings
from streams.runtime.key_files import create_key
from streams.worker.store.query import open_store
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

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]
SAMPLED = ("--speed", "100", "--metered", "0.5")


def edit(served: Fleet) -> Task:
    """Version 2, whose events have another column."""
    path = served.folder / "task.py"
    text = path.read_text()
    path.write_text(text.replace("name=", "version=2, upload_dtype='float16', name="))
    return replace(served.task, version=2, upload_dtype="float16")


def edited(served: Fleet, edge: Edge, task: Task) -> None:
    """What the new version needs: its first model, and its teacher."""
    key = create_key(edge.folder / "keys" / "signing.pem")
    (edge.folder / "model.twa").write_bytes(artifact(key, plain(1), 2, task=task))
    write_teacher(task, served.folder)


def keep_old(served: Fleet) -> dict[str, str]:
    """A worker's options to score version 1 too, after the edit."""
    for name in ("task.py", "teacher.tw"):
        shutil.copy(served.folder / name, served.folder / f"old-{name}")
    old = served.folder / "old-task.py"
    return {"also": f"{old}:task", "also_teacher": str(served.folder / "old-teacher.tw")}


def slots(edge: Edge) -> SlotState:
    return SlotState.decode((edge.spool_folder.parent / "slots" / "slots.json").read_bytes())


@pytest.fixture
def nowhere() -> BrokerSettings:
    return BrokerSettings(bootstrap=f"127.0.0.1:{port_without_listener()}")


@pytest.fixture
def served(kafka: BrokerSettings, tmp_path: Path) -> Iterator[Fleet]:
    with fleet(kafka, tmp_path, 1) as made:
        yield made


@pytest.fixture
def edge(served: Fleet, tmp_path: Path) -> Iterator[Edge]:
    made = Edge(served, "edited", tmp_path / "state")
    yield made
    made.end()


def change(served: Fleet, edge: Edge, nowhere: BrokerSettings) -> int:
    """Run the device with both versions of the task, without a broker; return how many events are
    of version 1."""
    edge.start(nowhere, *SAMPLED)
    edge.goes_on(8)
    edge.kill()  # with events and drops of version 1 in its spool
    old = edge.produced
    edited(served, edge, edit(served))
    for _ in range(3):  # as many crashes as a version on trial may have
        edge.start(nowhere, *SAMPLED, "--drain", "0.1")
        until(lambda: edge.running() and edge.serving(), "the device serves the new version")
        edge.goes_on()
        edge.stop()  # not a crash
    return old


def send(served: Fleet, edge: Edge) -> None:
    edge.start(served.broker, *SAMPLED)
    edge.goes_on()
    until(lambda: edge.state.pending < 50, "the device sends")
    edge.stop()


def letters(served: Fleet) -> list[dead_letters.DeadLetter]:
    return dead_letters.read_letters(served.broker, served.task.name)


def test_an_edited_task_costs_no_crash_no_rollback_and_no_event(
    served: Fleet, edge: Edge, nowhere: BrokerSettings
) -> None:
    """Events of the new version are parked by the worker of the old one, and scored by a worker of
    both, then by one of the new version alone."""
    both = keep_old(served)
    served.start("w1")
    served.ready("w1", [0])
    old = change(served, edge, nowhere)
    send(served, edge)
    assert "has pending events of version 1 of the task" in edge.log
    assert slots(edge).crashes_us == []
    assert slots(edge).refused == {}
    assert slots(edge).active is not None

    name = served.task.name
    until(lambda: read_lag(served.broker, name).messages == 0, "all events are scored or parked")
    parked = letters(served)
    assert {letter.reason for letter in parked} == {"task-version"}
    assert {version_of(dict(letter.headers)) for letter in parked} == {b"2"}
    seqs = {seq for _, _, seq in served.scored()}
    assert seqs
    assert all(seq < old for seq in seqs)
    assert served.workers[0].poll() is None, "the worker of version 1 goes on"
    assert f"of version 2 of task {name}, not 1" in parked[0].detail

    assert stop(served.workers[0]) == 0
    served.options |= both
    served.start("both")
    served.ready("both", [0])
    assert dead_letters.replay(served.broker, name, parked) == len(parked)
    dropped = edge.check()  # each delivered event is in the store once
    assert dropped.keys() == {"metered"}
    with open_store(served.store) as connection:
        sql = "select task_version, seq < ? from scores group by all order by all"
        assert connection.execute(sql, [old]).fetchall() == [(1, True), (2, False)]
    until(lambda: all_published(served), "every row is published")
    check_topics(served)
    sent = {dict(each.headers)[TASK_VERSION] for each in served.read("scores")}
    assert sent == {b"1", b"2"}

    killed = served.workers[1]
    killed.kill()
    killed.wait(10)
    for word in both:
        del served.options[word]
    served.start("new")  # of version 2 alone, whatever version the last commit's rows are of
    served.ready("new", [0])
    edge.check()
