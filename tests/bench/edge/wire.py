"""Bytes of an event as they are stored on the topic, against the same events as JSON.

Three devices send to a partition each of a topic of their own: one so slow that a message has one
event, one at 50 events a second, one that sends a backlog. What they have sent is read again,
written as JSON lines - a line an event, the same messages and keys, the headers of events/1, floats
in as few digits as give the same float32 - and put on a partition of another topic by the same
producer. The broker stores what it gets, compressed as the producer did it, so the size of a
partition over its events is what went over the wire, without requests, answers and heartbeats.
"""

import json
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
from kafka import KafkaAdminClient

from streams.contract.events.batches import times_us
from streams.contract.events.records import EventBatch, decode_event_message, encode_stream
from streams.contract.task import Task, load_task
from streams.contract.topics import EVENTS, TopicSpec, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader, Received, partition_of
from streams.kafka.settings import BrokerSettings
from tests.bench.edge.stage import Stage
from tests.bench.edge.tasks import HOP_S, WIRE_TASKS
from tests.bench.report import Cell, Goal, Results, Table

RATES = {"one a message": 3.0, "50 a second": 50.0, "a backlog": 0.0}  # events a second
MOST = {("prediction", "one a message"): 150, ("prediction", "50 a second"): 40}  # bytes an event
PASSES = "4"  # of the recording, for a backlog
SEND_S = 10.0


def wire(stage: Stage, results: Results) -> None:
    rows: list[list[Cell]] = []
    _send(stage)
    for upload, reference in WIRE_TASKS.items():
        task = load_task(reference)
        topic, other = topic_name(task.name, EVENTS), f"{topic_name(task.name, EVENTS)}-json"
        ensure_topics(stage.kafka.settings, [TopicSpec(other, len(RATES), "delete", -1)])
        messages = _messages(stage.kafka.settings, topic)
        plain = _as_json(stage.kafka.settings, task, messages, other)
        ours, theirs = (_sizes(stage.kafka.settings, name) for name in (topic, other))
        for place, title in enumerate(RATES):
            mine = [m for m in messages if m.partition == place]
            events = sum(_batch(task, m).rows.num_rows for m in mine)
            rows.append([
                f"{upload}, {title}", events, events / len(mine), ours[place] / events,
                theirs[place] / events, plain[place] / events, theirs[place] / ours[place],
                plain[place] / ours[place],
            ])  # fmt: skip
            results.goals.append(
                Goal(f"bytes an event, {upload}, {title}", ours[place] / events,
                     at_most=MOST.get((upload, title)))
            )  # fmt: skip
            results.goals.append(
                Goal(f"JSON with zstd / ours, bytes an event, {upload}, {title}",
                     theirs[place] / ours[place])
            )  # fmt: skip
    columns = ["upload", "events", "events a message", "bytes an event", "JSON with zstd"]
    columns += ["JSON", "JSON with zstd to ours", "JSON to ours"]
    assert __doc__ is not None
    text = " ".join(__doc__.partition("\n\n")[2].split())
    results.tables.append(Table("Bytes of an event", text, columns, rows))


def _device(place: int) -> str:
    """A name whose events go to this partition."""
    names = (f"wire-{n}" for n in range(1000))
    return next(name for name in names if partition_of(name, len(RATES)) == place)


def _send(stage: Stage) -> None:
    """All devices at once: time is not measured."""
    with ExitStack() as stack:
        devices = []
        for reference in WIRE_TASKS.values():
            ensure_topics(stage.kafka.settings, topic_specs(load_task(reference).name, len(RATES)))
            for place, rate in enumerate(RATES.values()):
                words = ["--device", _device(place), "--kafka", stage.kafka.settings.bootstrap]
                words += ["--speed", str(rate * HOP_S), "--drain", "20", "--passes", PASSES]
                devices.append(stack.enter_context(stage.edge_run(stage.edge, reference, *words)))
        for device in devices:
            device.first_answer_s()
        time.sleep(SEND_S)


def _messages(settings: BrokerSettings, topic: str) -> list[Received]:
    reader = Reader(settings, [topic])
    try:
        return reader.read_to_end()
    finally:
        reader.close()


def _batch(task: Task, message: Received) -> EventBatch:
    found = decode_event_message(task, message.key, message.value, message.headers)
    assert isinstance(found, EventBatch)
    return found


def _as_json(
    settings: BrokerSettings, task: Task, messages: list[Received], topic: str
) -> dict[int, int]:
    """Put the messages on `topic` as JSON lines; their bytes by partition, before compression."""
    producer, sizes = Producer(settings), dict.fromkeys(range(len(RATES)), 0)
    for message in messages:
        assert message.key is not None
        batch = _batch(task, message)
        text, headers = "".join(_lines(batch)).encode(), encode_stream(batch, task.version)[2]
        head = sum(len(name) + len(value) for name, value in headers) + len(message.key)
        sizes[message.partition] += len(text) + head
        producer.put(topic, message.key, text, headers)
    producer.close()
    return sizes


def _lines(batch: EventBatch) -> list[str]:
    times = times_us(batch.rows.column("time"))
    rows = batch.rows.drop_columns(["time"]).to_pylist()
    return [
        json.dumps(_short(row) | {"time_us": int(at)}, separators=(",", ":")) + "\n"
        for row, at in zip(rows, times, strict=True)
    ]


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Without what is not there; floats as short as they are float32."""
    return {
        name: [float(str(np.float32(x))) for x in value] if isinstance(value, list) else value
        for name, value in row.items()
        if value is not None
    }


def _sizes(settings: BrokerSettings, topic: str) -> dict[int, int]:
    """Bytes that the broker stores of each partition."""
    admin = KafkaAdminClient(**settings.client_options())
    try:
        found = admin.describe_log_dirs([topic])
    finally:
        admin.close()
    return {
        one["partition_index"]: one["partition_size"]
        for node in found
        for folder in node["log_dirs"]
        for named in folder["topics"]
        for one in named["partitions"]
    }
