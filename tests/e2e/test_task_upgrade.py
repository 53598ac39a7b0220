"""A task that is edited between two runs of a real device, under real workers of both versions: no
crash, no rollback, and each event is scored by a worker of its own version."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from compose.reports import dead_letters
from edge_client.inference.slots import SlotState
from streams.contract.events.records import TASK_VERSION
from streams.contract.task import Task
from streams.kafka.settings import BrokerSettings
from streams.runtime.key_files import create_key
from tests.chaos.edge import Edge
from tests.compose.cli.test_cli import port_without_listener
from tests.edge_client.models import artifact, plain
from tests.streams.worker.support import Fleet, fleet, stop, until, write_teacher

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]
SAMPLED = ("--speed", "100", "--metered", "sampled", "--metered-share", "0.5")


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


def slots(edge: Edge) -> SlotState:
    return SlotState.decode((edge.spool_folder.parent / "slots" / "slots.json").read_bytes())


def test_an_edited_task_costs_no_crash_no_rollback_and_no_event(
    kafka: BrokerSettings, tmp_path: Path
) -> None:
    nowhere = BrokerSettings(bootstrap=f"127.0.0.1:{port_without_listener()}")
    with fleet(kafka, tmp_path, 1) as served:
        edge = Edge(served, "edited", tmp_path / "state")
        try:
            upgrade(served, edge, nowhere)
        finally:
            edge.end()


def upgrade(served: Fleet, edge: Edge, nowhere: BrokerSettings) -> None:
    served.start("w1")
    served.ready("w1", [0])
    edge.start(nowhere, *SAMPLED)
    edge.goes_on(8)
    edge.kill()  # with events and drops of version 1 in its spool
    old = edge.produced

    task = edit(served)
    edited(served, edge, task)
    for _ in range(3):  # as many crashes as a version on trial may have
        edge.start(nowhere, *SAMPLED, "--drain", "0.1")
        until(lambda: edge.running() and edge.serving(), "the device serves the new version")
        edge.goes_on()
        edge.stop()  # not a crash
    edge.start(served.broker, *SAMPLED)
    edge.goes_on()
    until(lambda: edge.state.pending < 50, "the device sends")
    edge.stop()
    assert "has pending events of version 1 of the task" in edge.log
    assert slots(edge).crashes_us == []
    assert slots(edge).refused == {}
    assert slots(edge).active is not None

    def parked() -> list[dead_letters.DeadLetter]:
        return dead_letters.read_letters(served.broker, task.name)

    def scored() -> set[int]:
        return {seq for _, _, seq in served.scored()}

    until(lambda: len(parked()) > 0, "events of version 2 are parked")
    until(lambda: any(seq < old for seq in scored()), "events of version 1 are scored")
    assert all(seq < old for seq in scored())
    assert served.workers[0].poll() is None, "the worker of version 1 goes on"
    assert {letter.reason for letter in parked()} == {"task-version"}
    assert {dict(letter.headers)[TASK_VERSION] for letter in parked()} == {b"2"}

    assert stop(served.workers[0]) == 0
    served.start("w2")
    served.ready("w2", [0])
    assert dead_letters.replay(served.broker, task.name, parked()) == len(parked())
    dropped = edge.check()  # each delivered event is in the store once
    assert dropped.keys() == {"metered"}
    letters = json.dumps([letter.detail for letter in parked()])
    assert f"of version 2 of task {task.name}, not 1" in letters
