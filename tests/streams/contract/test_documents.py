"""JSON documents and topics."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.documents import DeviceState, encoded
from streams.contract.errors import MalformedRecord
from streams.contract.task import Category, Time
from streams.contract.topics import topic_specs
from streams.contract.window_report import ModelWindow, WindowReport, release_of
from streams.kafka.reader import partition_of
from streams.kafka.settings import BrokerSettings

STATE = DeviceState(
    device="d0", task="tiny", time_us=1, epoch="e", active="1-aaaaaaaa", produced=1, delivered=1,
    pending=0,
)  # fmt: skip


def test_a_document_comes_back_and_ignores_what_it_does_not_know() -> None:
    assert DeviceState.decode(STATE.encode()) == STATE
    newer = STATE.encode()[:-1] + b', "later": 1}'
    assert DeviceState.decode(newer) == STATE


def test_channels_and_numpys_numbers_are_written_as_plain_ones(tmp_path: Path) -> None:
    values = [Category("shop", size=3), Time("hour"), np.float32(0.5), np.int64(7), tmp_path]
    assert json.loads(encoded({"of": values})) == {"of": ["shop", "hour", 0.5, 7, str(tmp_path)]}
    with pytest.raises(NotImplementedError, match="object is not a type of documents"):
        encoded(object())


@given(st.binary(max_size=200))
def test_garbage_is_malformed_and_nothing_worse(junk: bytes) -> None:
    with pytest.raises(MalformedRecord):
        DeviceState.decode(junk)


def test_scores_lie_where_the_device_sends_its_events() -> None:
    specs = {spec.name: spec for spec in topic_specs("tiny.v1", 6)}
    assert specs["tiny.v1.events"].partitions == specs["tiny.v1.scores"].partitions == 6
    assert specs["tiny.v1.releases"].cleanup == "compact"
    # murmur2 as in Kafka's Java client: known values
    assert [partition_of(key, 100) for key in ("21", "foobar", "a-little-bit-long-string")] == [
        (-973932308 & 0x7FFFFFFF) % 100,
        (-790332482 & 0x7FFFFFFF) % 100,
        (-985981536 & 0x7FFFFFFF) % 100,
    ]


def test_broker_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEWHEEL_KAFKA", "kafka.example:9093")
    monkeypatch.setenv("TIDEWHEEL_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("TIDEWHEEL_KAFKA_SASL_MECHANISM", "SCRAM-SHA-512")
    monkeypatch.setenv("TIDEWHEEL_KAFKA_USERNAME", "me")
    monkeypatch.setenv("TIDEWHEEL_KAFKA_PASSWORD", "secret")
    settings = BrokerSettings.read()
    options = settings.client_options()
    assert options["bootstrap_servers"] == "kafka.example:9093"
    assert options["sasl_plain_username"] == "me"
    assert "ssl_cafile" not in options
    assert settings.replace(bootstrap="other:1").bootstrap == "other:1"


def test_a_devices_own_copies_count_as_the_release_that_they_copy() -> None:
    report = WindowReport(
        task="tiny", device="d0", window_us=0, end_us=1, revision=0, events=9, teacher_model="t",
        models={
            "2-aaaaaaaa.p1": ModelWindow(events=6, agreeing=5, compared=6),
            "2-aaaaaaaa": ModelWindow(events=3, agreeing=1, compared=2, labelled=1, correct=1),
        },
    )  # fmt: skip
    assert report.by_release == {
        "2-aaaaaaaa": ModelWindow(events=9, agreeing=6, compared=8, labelled=1, correct=1)
    }


@pytest.mark.parametrize(
    ("model", "release"),
    [
        ("1-aaaaaaaa", "1-aaaaaaaa"),
        ("2-bbbbbbbb.a3", "2-bbbbbbbb"),
        ("2-bbbbbbbb.p12", "2-bbbbbbbb"),
        ("2-bbbbbbbb.k1-aaaaaaaa", "2-bbbbbbbb"),
        ("own-1.0", "own-1.0"),
        ("own-1.1.3", "own-1.1.3"),
        ("own.plain", "own.plain"),
    ],
)
def test_what_a_device_made_of_a_release_counts_for_it(model: str, release: str) -> None:
    assert release_of(model) == release
