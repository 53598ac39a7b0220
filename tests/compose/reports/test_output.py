"""`tidewheel tail`: any topic readably."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from compose.cli.views import row_line
from streams.contract.events.messages import Drop, encode_drop
from streams.contract.events.records import encode_events
from streams.contract.task import load_task
from streams.contract.topics import topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.readable import TOPICS, rows_of
from streams.kafka.reader import Received
from streams.kafka.settings import BrokerSettings
from tests.compose.cli.test_cli import tidewheel
from tests.compose.messages import TASK, received, release, state, step, window
from tests.rig.made_up.mangled import mangled
from tests.rig.made_up.own_task import own_task
from tests.rig.made_up.tiny_task import task
from tests.rig.processes.workers import batch


def event_message() -> Received:
    key, value, headers = encode_events(batch("d0", 7, [1, 2]))
    return Received(f"{TASK}.events", 0, 0, key, value, headers, 1_700_000_000_000)


def test_every_kind_of_message_becomes_rows() -> None:
    rows = rows_of(task, "events", event_message())
    assert [(row["device"], row["seq"], row["model"]) for row in rows] == [
        ("d0", 7, "1-aaaaaaaa"),
        ("d0", 8, "1-aaaaaaaa"),
    ]
    assert rows[0]["at"] == "2023-11-14T22:13:20.000+00:00"
    key, value, headers = encode_drop(Drop("d0", "e1", 3, 4, "old"))
    [drop] = rows_of(task, "events", Received(f"{TASK}.events", 0, 0, key, value, headers))
    assert drop["dropped"]["reason"] == "old"
    [found] = rows_of(task, "windows", window("d0", 5, model="2-b"))
    assert (found["device"], found["models"]["2-b"]["agreeing"]) == ("d0", 6)
    [found] = rows_of(task, "fleet", state("d0"))
    assert (found["device"], found["produced"]) == ("d0", 10)
    [found] = rows_of(task, "rounds", step("refused", device="d2", reason="norm"))
    assert (found["kind"], found["reason"]) == ("refused", "norm")
    [found] = rows_of(task, "releases", release("1-aaaaaaaa", 3))
    assert (found["under"], found["seq"], found["model"]) == (TASK, 3, "1-aaaaaaaa")
    [found] = rows_of(task, "artifacts", received("artifacts", "a" * 64, b"chunk"))
    assert (found["key"], found["bytes"]) == ("a" * 64, 5)


def test_a_traced_message_tells_its_trace() -> None:
    message = event_message()
    for value, known in ((b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01", True), (b"\xff", False)):
        traced = replace(message, headers=[*message.headers, ("traceparent", value)])
        traces = [row.get("trace") for row in rows_of(task, "events", traced)]
        assert traces == ["ab" * 16 if known else None] * 2


@pytest.mark.parametrize("topic", TOPICS)
def test_whatever_is_there_something_is_returned(topic: str) -> None:
    for seed, sound in enumerate(
        (event_message().value, state("d0").value, release("1-aaaaaaaa").value)
    ):
        for value in mangled(sound or b"", 200, seed):
            message = Received(f"{TASK}.{topic}", 0, 0, b"\xff\x00", value, [("x", b"\xff")])
            for row in rows_of(task, topic, message):
                json.dumps(row, default=str)


@pytest.mark.kafka
def test_the_command_prints_the_last_messages_and_ends_where_it_is_told(
    tmp_path: Path, kafka: BrokerSettings
) -> None:
    reference = own_task(tmp_path)
    name = load_task(reference).id
    ensure_topics(kafka, topic_specs(name, 1))
    producer = Producer(kafka)
    for number in range(7):
        producer.put(topic_name(name, "fleet"), b"d0", state("d0", produced=number).value or b"")
    producer.put(topic_name(name, "fleet"), b"d0", b"no document")
    producer.close()
    words = ["tail", reference, "fleet", "--kafka", kafka.bootstrap]
    done = tidewheel(*words, "--last", "3", "--json", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row.get("produced") for row in rows] == [5, 6, None]
    assert "unreadable" in rows[-1]
    text = tidewheel(*words, "--last", "1", folder=tmp_path).stdout
    assert "unreadable=" in text
    assert tidewheel(*words, "--last", "0", folder=tmp_path).stdout == ""


def test_a_row_for_a_person_has_short_numbers_and_vectors() -> None:
    row = {"v": [0.123456, 1.0, 2.0, 3.0, 4.0, 5.0], "x": 0.1 + 0.2, "n": None, "d": {"a": 1}}
    assert row_line(row) == 'v=[0.123, 1, 2, 3, … 2 more]  x=0.3  n=None  d={"a": 1}'
