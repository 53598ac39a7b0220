"""A task that is edited while events wait: each event leaves as what it is, to its own topics."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_client.spool.queue import Spool
from edge_client.spool.writer import Event, SpoolWriter
from edge_client.uplink.task_queues import LABELS, SPOOL, EarlierQueues, queue_folder, queues
from streams.contract.documents import DeviceState
from streams.contract.events.labels import LabelBatch
from streams.contract.events.messages import Drop, Headers, encode_label_lines
from streams.contract.events.records import EventBatch, decode_event_message
from streams.contract.task import Segment, Task
from tests.rig.made_up.tiny_task import task
from tests.rig.made_up.uplink_broker import Done
from tests.rig.processes.workers import until

OTHER_COLUMNS = replace(task, version=2, segment=Segment(samples=16, hop=8))
SAME_COLUMNS = replace(task, version=2, classes=("a", "b", "c"))
NOT_RAISED = replace(task, segment=Segment(samples=16, hop=8))  # edited, with the version as it was
LABEL = {"from": 1, "to": 2, "label": [1.0], "told": 3, "source": "user"}


class Wire:
    """Takes and acknowledges everything, unless it is down."""

    def __init__(self) -> None:
        self.found: list[tuple[str, tuple[bytes, bytes, Headers]]] = []
        self.down = False

    def send(self, topic: str, key: bytes, value: bytes, headers: Headers, done: Done) -> None:
        if not self.down:
            self.found.append((topic, (key, value, headers)))
            done(None)

    def close(self, timeout_s: float) -> None:
        return

    def of(self, topic: str) -> list[tuple[bytes, bytes, Headers]]:
        return [message for name, message in self.found if name == topic]

    def states(self, topic: str) -> list[DeviceState]:
        return [DeviceState.decode(value) for _, value, _ in self.of(topic)]


def fill(device: Path, of: Task, count: int) -> Spool:
    spool = Spool(queue_folder(device, SPOOL, of))
    writer = SpoolWriter(of, spool)
    for _ in range(count):
        segment = np.zeros(of.segment_shape, np.float32)
        writer.put(Event(0, "1-aaaaaaaa", np.zeros(of.outputs, np.float32), None, segment))
        writer.write()
    return spool


def seqs(wire: Wire, topic: str, of: Task) -> list[int]:
    """Those of the events on a topic, which a worker of the task understands."""
    found: list[int] = []
    for message in wire.of(topic):
        record = decode_event_message(of, *message)
        if isinstance(record, EventBatch):
            found += range(record.first, record.last + 1)
    return found


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def sending(tmp_path: Path, wire: Wire) -> Callable[[Task], EarlierQueues]:
    def start(of: Task) -> EarlierQueues:
        made = EarlierQueues(tmp_path, of, "d0", lambda: wire)
        made.start()
        return made

    return start


def sent(earlier: EarlierQueues, device: Path, of: Task) -> None:
    def left() -> set[Path]:
        earlier.look()
        return {each.folder for each in queues(device, SPOOL, LABELS)}

    until(lambda: left() <= {queue_folder(device, kind, of) for kind in (SPOOL, LABELS)}, "sent")


@pytest.mark.parametrize("edited", [OTHER_COLUMNS, SAME_COLUMNS, NOT_RAISED])
def test_what_is_pending_of_the_version_before_goes_to_its_own_topics(
    tmp_path: Path, wire: Wire, sending: Callable[[Task], EarlierQueues], edited: Task
) -> None:
    spool = fill(tmp_path, task, 3)
    spool.declare_lost(2, "disk-full")
    labels = Spool(queue_folder(tmp_path, LABELS, task))
    labels.append(1, encode_label_lines([LABEL]), mark=0)
    own = fill(tmp_path, edited, 4)
    sent(sending(edited), tmp_path, edited)
    assert seqs(wire, "tiny.v1.events", task) == [0, 1, 2]
    records = [decode_event_message(task, *m) for m in wire.of("tiny.v1.events")]
    assert {type(record) for record in records} == {EventBatch, Drop, LabelBatch}
    last = wire.states("tiny.v1.fleet")[-1]
    assert (last.epoch, last.phase, last.pending) == (spool.epoch, "stopped", 0)
    assert (last.produced, last.delivered, last.dropped) == (5, 3, {"disk-full": 2})
    assert own.account().pending == 4  # its own uplink sends these
    assert edited is NOT_RAISED or not wire.of(f"{edited.id}.events")


def test_what_is_pending_is_said_in_words_and_nothing_of_an_empty_queue(
    tmp_path: Path, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, task, 3)
    fill(tmp_path, SAME_COLUMNS, 1)
    Spool(queue_folder(tmp_path, LABELS, task))
    caplog.set_level("INFO")
    EarlierQueues(tmp_path, OTHER_COLUMNS, "d0", lambda: wire)
    said = [one for one in caplog.messages if "pending" in one]
    assert said == [
        "d0: still pending of tiny.v1: 3 events",
        f"d0: still pending of {SAME_COLUMNS.id}: 1 event",
    ]


def test_a_crash_before_anything_is_sent_leaves_all_of_it(
    tmp_path: Path, wire: Wire, sending: Callable[[Task], EarlierQueues]
) -> None:
    fill(tmp_path, task, 3)
    wire.down = True
    killed = sending(SAME_COLUMNS)
    until(lambda: killed.look() is None, "it has looked")
    assert [each.task for each in queues(tmp_path, SPOOL)] == ["tiny.v1"]
    killed.stop(0.0)
    wire.down = False
    sent(sending(SAME_COLUMNS), tmp_path, SAME_COLUMNS)
    assert seqs(wire, "tiny.v1.events", task) == [0, 1, 2]


def test_the_way_back_sends_the_newer_version(
    tmp_path: Path, wire: Wire, sending: Callable[[Task], EarlierQueues]
) -> None:
    for of, count in ((task, 2), (OTHER_COLUMNS, 3)):
        fill(tmp_path, of, count)
    sent(sending(task), tmp_path, task)
    assert seqs(wire, "tiny.v2.events", OTHER_COLUMNS) == [0, 1, 2]
    assert Spool(queue_folder(tmp_path, SPOOL, task)).account().pending == 2


def test_a_folder_that_is_no_queue_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / SPOOL / "tiny.v1.backup").mkdir(parents=True)
    assert list(queues(tmp_path, SPOOL)) == []
