"""Recent windows as they stand on the topics, some of them broken."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from federation.evaluation import recent_windows
from federation.evaluation.recent_windows import RecentWindows
from streams.contract.errors import BrokerUnavailable
from streams.contract.events.json_items import MAX_ROWS
from streams.contract.events.messages import Drop, Headers, encode_drop
from streams.contract.events.records import (
    SCHEMA_OF,
    EventBatch,
    ScoresForm,
    encode_events,
    encode_scores,
    score_schema,
)
from streams.contract.task import Task, load_task
from streams.contract.topics import EVENTS, SCORES, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings
from tests.rig.made_up.event_rows import event_rows
from tests.rig.made_up.own_task import own_task

Message = tuple[bytes, bytes, Headers]


def segment(device: str, seq: int, task: Task) -> np.ndarray:
    """Tells whose it is: the device's number on one channel, the seq on the other."""
    whole = np.zeros(task.segment_shape, np.float32)
    whole[0], whole[1] = float(device[1:]), float(seq)
    return whole


def events(task: Task, device: str, first: int, count: int) -> Message:
    rows = event_rows(
        task,
        first=first,
        times=np.arange(first, first + count) * 1_000_000,
        model="1-a",
        outputs=np.zeros((count, task.outputs), np.float32),
        labels=[None] * count,
        segments=np.stack([segment(device, s, task) for s in range(first, first + count)]),
    )
    return encode_events(EventBatch(device, "e", first, rows))


def teacher(seq: int, task: Task) -> list[float]:
    return [float(seq % task.outputs == i) for i in range(task.outputs)]


def scores(
    task: Task,
    device: str,
    seqs: Sequence[int],
    *,
    answers: bool = True,
    epoch: str = "e",
    form: ScoresForm = "arrow",
) -> Message:
    n = len(seqs)
    columns = {
        "device": [device] * n, "epoch": [epoch] * n, "seq": list(seqs), "time": [0] * n,
        "event_id": [None] * n,
        "window": [0] * n, "revision": [0] * n, "model": ["1-a"] * n, "outputs": [[0.0]] * n,
        "teacher_model": ["1-t"] * n,
        "teacher": [teacher(s, task) if answers else [] for s in seqs],
        "label": [None] * n, "agrees": [None] * n, "correct": [None] * n, "partition": [0] * n,
        "commit": [0] * n,
    }  # fmt: skip
    schema = score_schema()
    arrays = [pa.array(columns[f.name], f.type) for f in schema]
    value = encode_scores(pa.RecordBatch.from_arrays(arrays, schema=schema), form)
    return device.encode(), value, [("schema", SCHEMA_OF[form].encode())]


BROKEN: Message = (b"d1", b"no arrow", [("schema", b"events/1")])


@dataclass
class FakeTail:
    """Gives messages back from the last on, two at a time."""

    messages: list[Message]
    closed: bool = False

    def read_back(self, timeout_s: float) -> Iterator[list[Received]]:
        found = [Received("t", 0, at, *m) for at, m in enumerate(self.messages)]
        while found:
            yield found[-2:]
            found = found[:-2]

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeTopics:
    """By name without the task."""

    topics: dict[str, list[Message]]
    tails: list[FakeTail] = field(default_factory=list)

    def __call__(self, topic: str) -> FakeTail:
        self.tails.append(FakeTail(self.topics[topic.rpartition(".")[2]]))
        return self.tails[-1]


def check(found: RecentWindows | None, task: Task, rows: set[tuple[str, int]]) -> None:
    """Each row has its own segment and the teacher's answer to it."""
    assert found is not None
    assert found.segments.dtype == found.teacher.dtype == np.float32
    told = list(zip(found.devices.tolist(), found.segments[:, 1, 0].astype(int), strict=True))
    assert len(told) == len(rows)
    assert set(told) == rows
    for (device, seq), whole, outputs in zip(told, found.segments, found.teacher, strict=True):
        np.testing.assert_array_equal(whole, segment(device, seq, task))
        assert outputs.tolist() == teacher(seq, task)


def test_what_has_a_segment_and_an_answer_is_joined_once_and_the_rest_is_passed_over(
    tiny: Task,
) -> None:
    topics = FakeTopics(
        {
            EVENTS: [
                events(tiny, "d1", 0, 5), BROKEN, events(tiny, "d2", 0, 3),
                encode_drop(Drop("d1", "e", 5, 9, "full")), events(tiny, "d2", 0, 3),
                events(tiny, "d1", 10, 4),
            ],
            SCORES: [
                scores(tiny, "d1", [1, 2, 3]), scores(tiny, "d2", [0, 1, 7]), BROKEN,
                scores(tiny, "d1", [3]), scores(tiny, "d1", [10, 11], answers=False),
            ],
        }
    )  # fmt: skip
    seq = 6 * MAX_ROWS + 1  # of the second event of the message 6
    one = {"time_us": 5, "answer": 0, "segment": segment("d3", seq, tiny).tolist()}
    topics.topics[EVENTS].append((b"d3", json.dumps([one, one]).encode(), []))
    topics.topics[SCORES].append(scores(tiny, "d3", [seq], epoch="kafka-0-0", form="json"))
    found = recent_windows.read(tiny, topics)
    check(found, tiny, {("d1", 1), ("d1", 2), ("d1", 3), ("d2", 0), ("d2", 1), ("d3", seq)})
    assert all(tail.closed for tail in topics.tails)


@pytest.mark.parametrize(
    "topics",
    [
        {EVENTS: [], SCORES: []},
        {EVENTS: [BROKEN], SCORES: [BROKEN]},
    ],
)
def test_where_there_is_nothing_to_join_there_is_no_evidence(
    tiny: Task, topics: dict[str, list[Message]]
) -> None:
    assert recent_windows.read(tiny, FakeTopics(topics)) is None


def away(_topic: str) -> FakeTail:
    raise BrokerUnavailable("away")


def test_without_a_broker_or_uploaded_segments_there_is_no_evidence(tiny: Task) -> None:
    assert recent_windows.read(tiny, away) is None
    assert recent_windows.read(replace(tiny, upload="prediction"), away) is None


def test_reading_ends_when_its_time_is_over(tiny: Task) -> None:
    now = iter(range(100))
    every = [events(tiny, "d1", 10 * n, 10) for n in range(100)]
    told = [scores(tiny, "d1", [10 * n]) for n in range(100)]
    found = recent_windows.read(
        tiny, FakeTopics({EVENTS: every, SCORES: told}), lambda: float(next(now)) / 2
    )
    assert found is not None
    assert 0 < len(found.devices) < 20
    assert next(now) < 20


@pytest.mark.kafka
def test_a_topic_is_read_back_from_its_ends_to_its_beginnings(
    kafka: BrokerSettings, tmp_path: Path
) -> None:
    task = load_task(own_task(tmp_path))
    ensure_topics(kafka, topic_specs(task.id, 2))
    topic = topic_name(task.id, SCORES)
    producer = Producer(kafka)
    for n in range(50):
        producer.put(topic, b"key-%d" % (n % 4), b"%d" % n)
    reader = Reader(kafka, [topic])
    told = reader.read_back(step=7)
    first = next(told)
    producer.put(topic, b"key-0", b"later")
    parts = [first, *told]
    assert [*reader.read_back(timeout_s=0.0)] == []
    reader.close()
    producer.close()
    found = [message for part in parts for message in part]
    assert sorted(int(message.value or b"") for message in found) == list(range(50))
    for partition in (0, 1):
        mine = [[m.offset for m in part if m.partition == partition] for part in parts]
        lists = [offsets for offsets in mine if offsets]
        assert all(offsets == sorted(offsets) and len(offsets) <= 7 for offsets in lists)
        assert [offsets[0] for offsets in lists] == sorted((o[0] for o in lists), reverse=True)
