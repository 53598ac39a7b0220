from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.errors import BrokerUnavailable, MalformedRecord, UsageError
from streams.contract.events.event_columns import EventColumns
from streams.contract.events.messages import Drop
from streams.contract.events.records import encode_events
from streams.runtime.failpoints import read_failpoint, unarmed
from streams.worker import app
from streams.worker.commit.incoming import Incoming, dead_letters_of, decode
from streams.worker.metrics import Metrics
from tests.rig.made_up.tiny_task import task
from tests.rig.processes.workers import batch

KEY, VALUE, HEADERS = encode_events(batch("d0", 0, [1, 2, 3]))
names = st.sampled_from(["schema", "device", "epoch", "first", "last", "reason"]) | st.text()
texts = st.binary(max_size=20) | st.sampled_from([v for _, v in HEADERS] + [b"drops/1"]) | st.none()


def read(key: bytes | None, value: bytes | None, headers: object) -> EventColumns | Drop | str:
    incoming = Incoming(0, 0, key, value, headers)  # type: ignore[arg-type]
    try:
        return decode(task, incoming)
    except MalformedRecord as exc:
        dead_letters_of(task, incoming, exc)
        return exc.reason


@given(
    st.none() | st.binary(max_size=20) | st.just(KEY),
    st.none() | st.binary(max_size=200) | st.just(VALUE),
    st.lists(st.tuples(names, texts), max_size=8),
)
def test_whatever_comes_is_read_or_malformed(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
) -> None:
    read(key, value, headers)


@given(
    st.lists(
        st.tuples(st.integers(0, len(VALUE) - 1), st.integers(0, 255)), min_size=1, max_size=8
    ),
    st.integers(0, len(VALUE)),
)
def test_a_damaged_message_is_read_or_malformed(damage: list[tuple[int, int]], end: int) -> None:
    value = bytearray(VALUE)
    for at, byte in damage:
        value[at] = byte
    read(KEY, bytes(value), HEADERS)
    read(KEY, bytes(value[:end]), HEADERS)


def test_a_sound_message_is_read() -> None:
    assert isinstance(read(KEY, VALUE, HEADERS), EventColumns)


def test_a_failpoint_is_armed_only_by_the_variable() -> None:
    assert read_failpoint({}) is unarmed
    read_failpoint({"TIDEWHEEL_FAILPOINT": "worker-step-2:3"})("worker-step-2")
    with pytest.raises(UsageError, match="worker-step-2:3"):
        read_failpoint({"TIDEWHEEL_FAILPOINT": "worker-step-9:1"})


def test_a_broker_that_is_away_at_start_is_waited_for_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[Exception | None] = [BrokerUnavailable("away"), BrokerUnavailable("away"), None]

    def ensure(*_: object) -> None:
        if answer := answers.pop(0):
            raise answer

    monkeypatch.setattr(app, "ensure_topics", ensure)
    monkeypatch.setattr(app.time, "sleep", lambda _: None)
    asked = SimpleNamespace(broker=None, partitions=1, instance="w0")
    app.wait_for_topics(task, asked, Metrics())  # type: ignore[arg-type]
    assert answers == []
    assert caplog.text.count("waiting: away") == 1
