"""A task that is edited while events wait: each event leaves as what it is, with its version."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_client.spool.queue import Spool
from edge_client.spool.task_versions import NAME, begin, span_of
from edge_client.spool.writer import Event, SpoolWriter
from edge_client.uplink.uplink import Uplink
from streams.contract.errors import MalformedRecord, UsageError
from streams.contract.events.messages import Headers
from streams.contract.events.records import (
    EventBatch,
    decode_event_message,
    version_of,
)
from streams.contract.task import Task
from tests.rig.made_up.tiny_task import task
from tests.rig.made_up.uplink_broker import Done

OTHER_TYPE = replace(task, version=2, upload_dtype="float16")
SAME_COLUMNS = replace(task, version=2, classes=("a", "b", "c"))
NOT_RAISED = replace(task, upload_dtype="float16")  # edited, with the version as it was


class Wire:
    """Takes and acknowledges everything; keeps the messages of `events`."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, bytes, Headers]] = []

    def send(self, topic: str, key: bytes, value: bytes, headers: Headers, done: Done) -> None:
        self.found.append((key, value, headers))
        done(None)

    def close(self, timeout_s: float) -> None:
        return


def fill(spool: Spool, of: Task, count: int) -> None:
    begin(spool, of)
    writer = SpoolWriter(of, spool)
    for _ in range(count):
        segment = np.zeros(of.segment_shape, np.float32)
        writer.put(Event(0, "1-aaaaaaaa", np.zeros(of.outputs, np.float32), None, segment))
        writer.write()


def sent(spool: Spool, of: Task) -> list[tuple[bytes, bytes, Headers]]:
    wire = Wire()
    uplink = Uplink(of, "d0", spool, lambda: wire, lambda: True, None)
    for _ in range(3):
        uplink.step()
    assert spool.account().pending == 0
    return wire.found


def decoded(messages: list[tuple[bytes, bytes, Headers]], of: Task) -> list[int]:
    """The seqs of messages that a worker of the task takes."""
    found: list[int] = []
    for message in messages:
        try:
            batch = decode_event_message(of, *message)
        except MalformedRecord:
            continue
        if isinstance(batch, EventBatch):
            found += range(batch.first, batch.last + 1)
    return found


@pytest.mark.parametrize("edited", [OTHER_TYPE, SAME_COLUMNS, NOT_RAISED])
def test_events_of_both_versions_leave_as_what_they_are(tmp_path: Path, edited: Task) -> None:
    spool = Spool(tmp_path)
    fill(spool, task, 3)
    spool.declare_lost(2, "disk-full")
    fill(Spool(tmp_path), edited, 4)
    messages = sent(Spool(tmp_path), edited)
    assert decoded(messages, task) == [0, 1, 2]
    assert decoded(messages, edited) == [5, 6, 7, 8]
    versions = [version_of(dict(headers)) for _, _, headers in messages]
    assert versions == [b"1", None, b"%d" % edited.version]  # joined within a version


def test_pending_events_whose_note_is_lost_are_never_joined_with_others(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path)
    for of in (task, OTHER_TYPE):
        fill(spool, of, 2)
        (tmp_path / NAME).unlink()
    before = begin(spool, SAME_COLUMNS)
    assert before == span_of(SAME_COLUMNS).model_copy(update={"version": None})
    fill(spool, SAME_COLUMNS, 2)
    messages = sent(spool, SAME_COLUMNS)
    versions = [version_of(dict(headers)) for _, _, headers in messages]
    assert versions == [None, None, None, None, b"2"]
    assert decoded(messages[:4], task) == [0, 1]  # the others have columns that nobody knows


def test_a_crash_before_the_first_event_of_a_version_changes_nothing(tmp_path: Path) -> None:
    fill(Spool(tmp_path), task, 3)
    for _ in range(2):  # a start that is killed before it writes an event, and another
        before = begin(Spool(tmp_path), OTHER_TYPE)
        assert before is None or before.version == 1
    assert begin(Spool(tmp_path), task) is None  # the way back
    messages = sent(Spool(tmp_path), task)
    assert decoded(messages, task) == [0, 1, 2]


def test_spans_that_are_sent_are_forgotten(tmp_path: Path) -> None:
    for number in range(1, 6):
        spool = Spool(tmp_path)
        edited = replace(task, version=number)
        assert begin(spool, edited) is None
        fill(spool, edited, 1)
        sent(spool, edited)
        spool.sync_position()
    assert (tmp_path / NAME).read_bytes().count(b"first") == 1


def test_events_of_another_task_are_refused_with_what_to_do(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    fill(spool, task, 2)
    other = replace(task, name="other")
    with pytest.raises(UsageError, match="has events of task 'tiny', not of 'other': send them"):
        begin(spool, other)
    sent(spool, task)
    assert begin(spool, other) is None


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"epoch": "e", "spans": 3}', b"\xff"])
def test_a_damaged_note_costs_the_knowledge_and_no_event(tmp_path: Path, damage: bytes) -> None:
    fill(Spool(tmp_path), task, 3)
    (tmp_path / NAME).write_bytes(damage)
    spool = Spool(tmp_path)
    begin(spool, task)
    fill(spool, task, 1)
    messages = sent(spool, task)
    assert decoded(messages, task) == [0, 1, 2, 3]
