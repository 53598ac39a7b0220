"""Every reading of a source is answered or counted: produced + skipped = readings."""

import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.inference.loop import InferenceLoop
from edge_client.samples import labels
from edge_client.samples.accuracy import AccuracyTracker, AnswerRecorder
from edge_client.samples.labels import DelayedLabels, LabelQueue
from edge_client.samples.samples import Samples
from edge_client.sources.live import LineReadings, Live
from edge_client.sources.mqtt import MqttSource, settings_of
from edge_client.sources.replay import Cut, Replay, Source
from edge_client.spool.queue import Spool
from edge_client.spool.writer import SpoolWriter
from streams.contract.events.compact import decode_block
from streams.contract.events.messages import task_layout
from streams.contract.task import Answered, Outcome, Task
from streams.runtime.failpoints import Failpoint, unarmed
from tests.edge_client.inference.test_loop import NoCopy, Slots
from tests.rig.made_up.killed import Killed
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.workers import until
from tests.rig.servers.mqtt import MqttBroker
from tidewheel import Reading, Segment

TRIPS = replace(tiny, segment=Segment(samples=1, hop=1), rate_hz=None)
DATE, MINUTE = 1_790_000_000_000_000, 60_000_000


def pairs(count: int = 200) -> list[Reading]:
    """Two readings a minute, of the same time; among them two that cannot be answered, one that
    comes late and one with a label that is none."""
    found = [Reading(DATE + i // 2 * MINUTE, (float(i), 1.0), float(i % 3)) for i in range(count)]
    found[20] = Reading(found[20].time_us, (1.0, 2.0, 3.0), 0.0)
    found[30] = Reading(found[30].time_us, (float("nan"), 0.0), 0.0)
    found[40] = Reading(DATE, (40.0, 1.0), 0.0)
    found[50] = Reading(found[50].time_us, (50.0, 1.0), 7.0)
    return found


class Device:
    """What a device does from its source to its spool and its memory."""

    def __init__(self, task: Task, folder: Path, failpoint: Failpoint = unarmed) -> None:
        self.task, self.folder, self.stop = task, folder, threading.Event()
        self.counted: Counter[str] = Counter()
        self.spool = Spool(folder / "spool", failpoint=failpoint)
        self.samples = Samples(task, folder / "samples.rows", epoch=self.spool.epoch)
        self.told = LabelQueue(folder / "labels", self.samples, self.skip)
        self.outcomes = DelayedLabels(task, "d0", self.told, self.skip)
        self.board = AccuracyTracker(folder / "scoreboard.json")
        note = AnswerRecorder(
            task, self.samples, self.board, self.outcomes if task.outcomes else None
        ).note
        self.writer = SpoolWriter(task, self.spool, note=note)

    def skip(self, reason: str, _time_us: int) -> None:
        self.counted[reason] += 1

    def loop(self, source: Source) -> InferenceLoop:
        return InferenceLoop(
            self.task, "d0", source, Slots(), NoCopy(), self.writer.put, self.skip, self.stop,  # type: ignore[arg-type]
            label_share=1.0,
        )  # fmt: skip

    def run(self, source: Source) -> None:
        self.loop(source).run()
        self.writer.write(last=True)

    def times(self) -> list[int]:
        frames = self.spool.read(self.spool.position, 1 << 30)
        layout = task_layout(self.task)
        blocks = [decode_block(layout, frame.payload, 0, 1000) for frame in frames]
        return [t for block in blocks for t in block.times.tolist()]


def replayed(device: Device) -> Source:
    return Replay(
        device.task, pairs, device.folder, speed=0, passes=1, resume_after_us=device.spool.mark,
        stop=device.stop, skip=device.skip,
    )  # fmt: skip


def live(device: Device) -> Source:
    return Live(device.task, pairs, device.stop, device.skip)


def lines(device: Device) -> Source:
    text = [json.dumps(reading._asdict()) for reading in pairs()]
    found = LineReadings(device.task, text, device.skip)
    return Live(device.task, lambda: found, device.stop, device.skip)


@pytest.mark.parametrize("source", [replayed, live, lines])
def test_readings_of_one_time_are_answered_in_order_and_all_others_are_counted(
    tmp_path: Path, source: Callable[[Device], Source]
) -> None:
    device = Device(TRIPS, tmp_path)
    device.run(source(device))
    assert device.counted.pop("out-of-order") == 1
    assert device.counted.pop("label-unfit") == 1
    assert device.spool.account().produced + device.counted.total() == len(pairs())
    assert device.counted.total() == 2
    left = [r.time_us for i, r in enumerate(pairs()) if i not in (20, 30)]
    assert device.times() == left


def test_readings_of_one_time_are_answered_when_they_come_by_mqtt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    broker, device = MqttBroker(tmp_path), Device(TRIPS, tmp_path / "d0")
    broker.start()
    address = settings_of(f"mqtt://127.0.0.1:{broker.port}/readings")
    mqtt = MqttSource(address, TRIPS, "d0", device.stop, device.skip)
    thread = threading.Thread(
        target=device.run, args=[Live(TRIPS, lambda: mqtt, device.stop, device.skip)]
    )
    thread.start()
    try:
        until(lambda: "subscribed to" in caplog.text, "the device has subscribed")
        broker.publish("readings", [json.dumps(r._asdict()).encode() for r in pairs()])
        until(lambda: device.writer.waiting >= 198, "all are answered")
    finally:
        device.stop.set()
        thread.join(10)
        broker.kill()
    assert device.spool.account().produced + 2 == len(pairs())
    assert device.counted == {
        "malformed-line": 1, "not-finite": 1, "out-of-order": 1, "label-unfit": 1,
    }  # fmt: skip


steps = st.lists(st.sampled_from([0, 0, 1, 5, MINUTE, -3, -2 * MINUTE]), min_size=1, max_size=30)


@given(steps, st.integers(1, 3), st.data())
def test_a_restart_answers_each_segment_once_whatever_their_times(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], samples: int, data: st.DataObject
) -> None:
    task = replace(TRIPS, segment=Segment(samples=samples, hop=1))
    times = [DATE + step for step in itertools.accumulate(steps)]
    readings = [Reading(t, (float(i), 0.0)) for i, t in enumerate(times)]
    folder = tmp_path_factory.mktemp("replay")

    def cuts(resume: int | None) -> list[Cut]:
        return list(
            Replay(
                task, lambda: readings, folder, speed=0, passes=2, resume_after_us=resume,
                stop=threading.Event(), skip=lambda *_: None,
            )
        )  # fmt: skip

    whole = cuts(None)
    if whole:
        at = data.draw(st.integers(0, len(whole) - 1))
        rest = cuts(whole[at].mark_us)
        assert [c.segment.tolist() for c in rest] == [c.segment.tolist() for c in whole[at + 1 :]]
        assert len({c.recorded_us for c in whole}) == len(whole) // 2


def at_once(_device: str, answered: Iterator[Answered]) -> Iterable[Outcome]:
    for one in answered:
        yield Outcome(one.last_us, one.last_us, 1)


@pytest.fixture(scope="module")
def hurried() -> Iterator[None]:
    """The thread of the labels looks for its end all the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, "FLUSH_S", 0.01)
        yield


@pytest.mark.usefixtures("hurried")
@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 40)), max_size=4))
def test_there_are_never_more_labels_than_events_were_produced(
    tmp_path_factory: pytest.TempPathFactory, kills: list[tuple[int, int]]
) -> None:
    """Kills: the readings between two writings, and the step of the spool that is the last one."""
    task, folder = replace(TRIPS, outcomes=at_once), tmp_path_factory.mktemp("d0")
    for every, steps in [*kills, (200, 2**30)]:
        left = iter(range(steps))

        def dies(_point: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed

        device = Device(task, folder, dies)
        device.writer._rows = 7  # of a frame: several a writing
        device.outcomes.start()
        try:
            loop = device.loop(source := replayed(device))
            for n, cut in enumerate(source, 1):
                loop.answer(cut)
                if n % every == 0:
                    device.writer.write()
            device.writer.write(last=True)
        except Killed:
            pass
        device.outcomes.stop()
        device.board.save()
        device.samples.save()
        produced = device.spool.account().produced
        assert sum(score.labelled for score in device.board.scores().values()) <= produced
        assert device.told.account().get("produced", 0) <= produced
        assert device.samples.labels_told <= produced
    assert produced == len(pairs()) - 2
