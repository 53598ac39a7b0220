"""No message stops a reader of its topic: whatever its header names, bytes, codec and times are,
the messages after it are read."""

import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest
from confluent_kafka import Producer as OtherProducer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import KafkaProducer
from kafka.codec import has_lz4
from kafka.record import MemoryRecords, MemoryRecordsBuilder

from compose.reports.dead_letters import join_parts
from federation.registry.publisher import current
from streams.contract.decisions import Delivery
from streams.contract.errors import MalformedRecord
from streams.contract.topics import topic_name, topic_specs
from streams.fleet.following import newest_of
from streams.fleet.view import FleetView
from streams.kafka import patches
from streams.kafka.admin import ensure_topics
from streams.kafka.artifact_download import Download
from streams.kafka.readable import TOPICS, rows_of
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings
from streams.worker.commit.messages import Incoming, decode
from streams.worker.patches import Records
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.polling import until

Message = tuple[bytes | None, bytes | None, Sequence[tuple[Any, bytes | None]]]
BAD_NAME = b"dev\xffice\xc3"


class RawName(str):
    """A header's name that kafka-python's builder writes as it is."""

    raw = b""

    def encode(self, *_: Any) -> bytes:  # type: ignore[override]
        return self.raw


def named(raw: bytes) -> RawName:
    made = RawName("x")
    made.raw = raw
    return made


def built(messages: Sequence[Message], compression: int = 0, form: int = 2) -> bytes:
    """One batch, as a broker stores it; those before `form` 2 have one message and no headers."""
    builder = MemoryRecordsBuilder(magic=form, compression_type=compression, batch_size=1 << 20)
    for key, value, headers in messages if form == 2 else messages[:1]:
        names = [(named(name), text) for name, text in headers] if form == 2 else []
        builder.append(timestamp=1, key=key, value=value, headers=names)
    builder.close()
    return bytes(builder.buffer())


def read(records: Any) -> list[tuple[int, bytes | None, bytes | None, list[tuple[str, Any]]]]:
    found = []
    while records.has_next():
        for record in records.next_batch():
            found.append((record.offset, record.key, record.value, list(record.headers)))
    return found


def both(data: bytes) -> Iterator[Any]:
    yield MemoryRecords(data)
    yield Records(data)


texts = st.text(max_size=8).map(str.encode)
names = st.one_of(texts, st.binary(max_size=8), st.just(BAD_NAME))
message = st.tuples(
    st.none() | st.binary(max_size=20),
    st.none() | st.binary(max_size=40),
    st.lists(st.tuples(names, st.none() | st.binary(max_size=10)), max_size=4),
)


@given(st.lists(message, min_size=1, max_size=8), st.sampled_from([0, 1, 4]))
@settings(max_examples=200, deadline=None)
def test_all_messages_of_a_batch_are_read_whatever_their_headers_are_called(
    messages: list[Message], compression: int
) -> None:
    """By both libraries the same: names that are UTF-8 as they are, the bytes beyond ASCII of
    others as "?"."""

    def shown(name: bytes) -> str:
        try:
            return name.decode()
        except UnicodeDecodeError:
            return bytes(b if b < 128 else ord("?") for b in name).decode()

    expected = [
        (offset, key, value, [(shown(name), text) for name, text in headers])
        for offset, (key, value, headers) in enumerate(messages)
    ]
    for records in both(built(messages, compression)):
        assert read(records) == expected


@given(st.lists(message, min_size=1, max_size=4), st.integers(61, 200), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_bytes_that_are_no_records_are_skipped_and_those_of_the_next_batch_are_read(
    messages: list[Message], at: int, change: int
) -> None:
    """As a broker would have to store them; the checksum is not looked at here."""
    bad, good = bytearray(built(messages)), built([(b"k", b"good", [])])
    bad[min(at, len(bad) - 1)] ^= change
    for records in both(bytes(bad) + good):
        assert read(records)[-1][1:3] == (b"k", b"good")


@given(
    st.lists(message, min_size=1, max_size=4), st.integers(17, 200), st.integers(1, 255),
    st.sampled_from([1, 2]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_check_sum_fits_a_batch_and_none_with_another_byte(
    messages: list[Message], at: int, change: int, form: int
) -> None:
    """For both libraries, and for the form before Kafka 0.11, whose sum is of other bytes."""
    good = bytearray(built(messages, form=form))
    bad = good.copy()
    bad[min(at, len(bad) - 1) if form == 2 else 12] ^= change  # there the sum itself
    for data, fits in ((good, True), (bad, False)):
        assert [records.next_batch().validate_crc() for records in both(bytes(data))] == [fits] * 2


@pytest.mark.parametrize("parser", [0, 1], ids=["kafka-python", "aiokafka"])
def test_what_is_skipped_is_named_and_counted(
    parser: int, caplog: pytest.LogCaptureFixture
) -> None:
    data = bytearray(built([(b"k", b"v", [(b"name", b"x")])] * 3))
    data[61] = 0x7F  # the first record's length
    records = list(both(bytes(data)))[parser]
    patches.skipped.clear()
    batch = records.next_batch()
    if parser == 0:
        batch.place = "t.events", 3
        assert list(batch) == []
        assert patches.skipped == {"t.events": 3}
        assert "t.events partition 3: 3 records from offset 0 to 2 cannot be read" in caplog.text
    else:
        assert list(batch) == []
        assert patches.skipped.total() == 3


@pytest.fixture
def task_on(kafka: BrokerSettings) -> str:
    name = f"t-{uuid.uuid4().hex[:8]}"
    ensure_topics(kafka, topic_specs(name))
    return name


def send(kafka: BrokerSettings, topic: str, messages: Sequence[Any], codec: str = "none") -> None:
    """Send values with headers, keys and times; a name is any bytes, as in C or in Java."""
    compression = None if codec == "none" else codec
    producer = KafkaProducer(
        bootstrap_servers=kafka.bootstrap, linger_ms=200, compression_type=compression
    )
    sent = []
    for value, headers, more in messages:
        names = [(named(name), text or b"") for name, text in headers or []]
        sent.append(producer.send(topic, value, headers=names, partition=0, **more))
    for each in sent:
        each.get(30)
    producer.close()


@pytest.mark.kafka
def test_a_reader_goes_on_after_header_names_that_are_no_utf_8(
    kafka: BrokerSettings, task_on: str
) -> None:
    topic = topic_name(task_on, "rounds")
    poison = (b"poison", [(BAD_NAME, b"x"), (b"ok", None)], {"key": b"k"})
    for codec in ("none", "gzip", "zstd"):
        send(kafka, topic, [(b"before", None, {}), poison, (b"after", None, {})], codec)
    with closing(Reader(kafka, [topic])) as reader:
        found = reader.read_to_end()
    assert [m.value for m in found] == [b"before", b"poison", b"after"] * 3
    assert found[1].headers == [("dev?ice?", b"x"), ("ok", b"")]


@pytest.mark.kafka
@pytest.mark.skipif(has_lz4(), reason="the codec is there")
def test_a_reader_goes_on_after_a_codec_that_is_not_installed(
    kafka: BrokerSettings, task_on: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic = topic_name(task_on, "rounds")
    send(kafka, topic, [(b"before", None, {})])
    other = OtherProducer(
        {"bootstrap.servers": kafka.bootstrap, "compression.type": "lz4", "linger.ms": 200}
    )
    for _ in range(3):
        other.produce(topic, b"x" * 500, partition=0)
    assert other.flush(30) == 0
    send(kafka, topic, [(b"after", None, {})])
    patches.skipped.clear()
    with closing(Reader(kafka, [topic])) as reader:
        found = reader.read_to_end()
    assert [(m.offset, m.value) for m in found] == [(0, b"before"), (4, b"after")]
    assert patches.skipped == {topic: 3}
    assert f"{topic} partition 0: 3 records from offset 1 to 3 cannot be read" in caplog.text


def judge(task: str, found: list[Received]) -> None:
    """Whatever reads a topic takes these messages, and raises nothing but MalformedRecord."""
    readers: list[Callable[[list[Received]], Any]] = [
        lambda m: current(m, task),
        lambda m: newest_of(m, task),
        join_parts,
    ]
    for reads in readers:
        reads(found)
    view = FleetView(task)
    asked = Delivery(model="1-aaaaaaaa", sha256="0" * 64, size=9, chunks=1, offset=0)
    download = Download(asked)
    for message in found:
        view.absorb(message)
        download.take(message)
        for topic in TOPICS:
            rows_of(tiny, topic, message)
        about = message.key, message.value, message.headers
        try:
            decode(tiny, Incoming(message.partition, message.offset, *about), "")
        except MalformedRecord:
            continue
    assert view.timeline.entries is not None


def test_a_snapshot_that_claims_to_have_many_parts_is_none() -> None:
    headers = [("id", b"a"), ("index", b"0"), ("count", b"9" * 12)]
    assert newest_of([Received("t.view", 0, 0, b"0/0", b"x", headers)], "t") is None


def documents(dice: random.Random) -> bytes:
    """JSON with fields of our documents, and numbers that are too large."""
    number = dice.choice(["1", "-1", "1e400", "9" * 30, str(2**62), "null", '"x"', "NaN"])
    fields = ["task", "device", "window_us", "end_us", "revision", "events", "teacher_model",
              "models", "time_us", "run", "kind", "seq", "text", "signature"]  # fmt: skip
    made = {name: dice.choice([number, '"finished"', '"d0"', "{}", "1"]) for name in fields}
    return ("{" + ",".join(f'"{name}":{value}' for name, value in made.items()) + "}").encode()


def fuzzed(dice: random.Random) -> tuple[bytes | None, list[tuple[bytes, bytes | None]], Any]:
    known = [b"schema", b"device", b"epoch", b"first", b"last", b"index", b"chunks", b"id",
             b"count", b"part", b"reason", b"source-offset", BAD_NAME]  # fmt: skip
    numbers = [b"1", b"-1", b"9" * 12, b"9" * 5000, b"1/2", b"0/0", b"\xff", b"", None, b" 1_0 "]
    headers = [
        (dice.choice([dice.choice(known), dice.randbytes(4)]).replace(b"\0", b"?") or b"?",
         dice.choice(numbers))
        for _ in range(dice.randrange(6))
    ]  # fmt: skip
    value = dice.choice([None, b"", dice.randbytes(40), documents(dice)])
    keys = [b"", b"d0", b"t/00000001", dice.randbytes(5)]
    times = [0, 1, 10**12, 2**53, 2**62, 2**63 - 1]
    return value, headers, {"key": dice.choice(keys), "timestamp_ms": dice.choice(times)}


def allows(admin: AdminClient, topic: ConfigResource) -> dict[str, str]:
    """The setting of a topic as the broker has it, a moment after its controller."""
    (found,) = admin.describe_configs([ConfigResource(topic.restype, topic.name)]).values()
    name = "message.timestamp.after.max.ms"
    return {name: found.result(30)[name].value}


@pytest.mark.kafka
def test_fuzzed_messages_of_another_client_stop_no_reader(
    kafka: BrokerSettings, task_on: str
) -> None:
    dice = random.Random(11)
    topics = [topic_name(task_on, name) for name in ("artifacts", "rounds", "dead-letters")]
    any_time = {"message.timestamp.after.max.ms": str(2**63 - 1)}
    for topic in topics:
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        changed = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            for name, value in any_time.items()
        ])  # fmt: skip
        for done in admin.incremental_alter_configs([changed]).values():
            done.result(30)
        until(lambda a=admin, c=changed: allows(a, c) == any_time, "the broker has the setting")
        send(kafka, topic, [fuzzed(dice) for _ in range(600)])
        send(kafka, topic, [(b"the end", None, {})])
    with closing(Reader(kafka, topics)) as reader:
        found = reader.read_to_end()
    for topic in topics:
        mine = [m for m in found if m.topic == topic]
        assert mine[-1].value == b"the end"
        assert len(mine) + patches.skipped[topic] == 601
        for kind in ("fleet", "windows", "releases", "rounds"):
            other = f"{task_on}.{kind}"
            again = [Received(other, 0, m.offset, m.key, m.value, m.headers, m.time_ms)
                     for m in mine]  # fmt: skip
            judge(task_on, again)
