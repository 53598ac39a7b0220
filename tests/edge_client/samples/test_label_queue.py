"""Labels of a person or of the task: in the samples at once, and sent by a durable queue."""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edge_client.samples.labels import OVERFLOW, LabelQueue
from edge_client.samples.samples import OUTCOME, USER, Samples
from edge_client.spool.frames import Frame
from edge_client.spool.queue import Spool
from edge_client.uplink.messages import Refusals, of_labels
from streams.contract.events.labels import LabelBatch
from streams.contract.events.records import decode_event_message
from tests.rig.made_up.killed import Killed, killed_at
from tests.rig.made_up.tiny_task import task

ONE = np.array([1.0], np.float32)


def device(folder: Path, skipped: Counter[str] | None = None, dies_at: str = "") -> LabelQueue:
    counted = Counter[str]() if skipped is None else skipped
    samples = Samples(task, folder / "s.rows")
    for at in range(5):
        samples.add(at, at, np.zeros(task.segment_shape), np.zeros(task.outputs), 0, None)
    return LabelQueue(
        folder / "labels", samples, lambda why, _: counted.update([why]),
        wall=lambda: 7.0, failpoint=killed_at(dies_at),
    )  # fmt: skip


def sent(queue: Spool) -> list[LabelBatch]:
    frames: list[Frame] = queue.read(queue.position, 1 << 30)
    messages = of_labels("d0", queue)(frames, Refusals(time.monotonic))
    found = [decode_event_message(task, *message.wire) for message in messages]
    return [batch for batch in found if isinstance(batch, LabelBatch)]


def test_a_label_goes_to_the_samples_at_once_and_to_the_server_by_the_queue(tmp_path: Path) -> None:
    told = device(tmp_path)
    assert told.account() == {}
    assert told.add(1, 3, ONE, USER) == 3
    assert told.add(4, 4, ONE, OUTCOME) == 1
    assert told.account() == {"produced": 2, "delivered": 0, "dropped": 0, "pending": 2}
    assert not told.queue.account().produced
    told.flush()
    [batch] = sent(told.queue)
    assert (batch.device, batch.epoch, batch.first) == ("d0", told.queue.epoch, 0)
    rows = batch.rows.to_pydict()
    assert rows["source"] == ["user", "outcome"]
    assert [int(at.timestamp()) for at in rows["told"]] == [7, 7]
    told.queue.settle(told.queue.read(told.queue.position, 1 << 30))
    assert told.account() == {"produced": 2, "delivered": 2, "dropped": 0, "pending": 0}


def test_frames_are_joined_and_numbers_go_on(tmp_path: Path) -> None:
    told = device(tmp_path)
    for at in range(3):
        told.add(at, at, ONE, USER)
        told.flush()
    [batch] = sent(told.queue)
    assert (batch.first, batch.last) == (0, 2)
    again = device(tmp_path)
    again.add(9, 9, ONE, USER)
    again.flush()
    assert sent(again.queue)[-1].last == 3


@pytest.mark.parametrize(("step", "left"), [("label-step-1", 0), ("label-step-2", 1)])
def test_a_crash_loses_nothing_that_was_confirmed(tmp_path: Path, step: str, left: int) -> None:
    told = device(tmp_path, dies_at=step)
    told.add(1, 1, ONE, USER)
    with pytest.raises(Killed):
        told.flush()
    assert device(tmp_path).queue.account().produced == left


def test_a_full_disk_is_said_and_the_labels_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = device(tmp_path)
    told.add(1, 1, ONE, USER)
    with monkeypatch.context() as patched:
        patched.setattr(
            Spool, "append", lambda *_args, **_kw: (_ for _ in ()).throw(OSError(28, "full"))
        )
        told.try_to_flush()
        assert told.error is not None
        assert "full" in told.error
    told.try_to_flush()
    assert (told.error, told.queue.account().produced) == (None, 1)


def test_more_than_can_wait_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_client.samples.labels.WAITING", 2)
    skipped = Counter[str]()
    told = device(tmp_path, skipped)
    for at in range(5):
        assert told.add(at, at, ONE, OUTCOME) == 1  # the samples have it
    assert skipped == {OVERFLOW: 3}
    assert told.account()["produced"] == 2
