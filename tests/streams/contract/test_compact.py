"""Messages events/2: what is written comes back, it is small, and nothing else passes."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatchBuilder

from streams.contract.errors import MalformedRecord
from streams.contract.events.compact import decode_rows, encode_block
from streams.contract.events.event_columns import columns_of, layout_of
from streams.contract.events.messages import EVENTS_2
from streams.contract.events.records import (
    MAX_ROWS,
    EventBatch,
    decode_event_message,
    encode_events,
    encode_stream,
    event_schema,
)
from streams.contract.task import Task
from streams.tasks import har
from tests.rig.made_up.event_rows import event_rows
from tests.rig.made_up.tiny_task import task
from tests.streams.contract.test_records import Message, batch, nullable

PREDICTION = replace(task, upload="prediction")
HALF = replace(task, upload_dtype="float16")
NUMBERS = replace(task, classes=(), targets=("u", "v"), tolerance=1.0)
GOOD = encode_events(batch())
LAYOUT = layout_of(event_schema(task))
assert LAYOUT is not None


def is_compact(message: Message) -> bool:
    return [name for name, _ in message[2]] == [EVENTS_2]


def kafka_bytes(message: Message) -> int:
    """The size of a Kafka record batch with one message, as the device's producer makes it."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=DefaultRecordBatchBuilder.CODEC_ZSTD, is_transactional=False,
        producer_id=7, producer_epoch=0, base_sequence=5, batch_size=1_000_000,
    )  # fmt: skip
    key, value, headers = message
    builder.append(0, 1_764_273_600_000, key, value, headers)
    return len(builder.build())


def predictions(count: int, first: int = 37) -> Message:
    """Answers of HAR's task, whose values do not compress, each with a label."""
    numbers = np.random.default_rng(first)
    private = replace(har.task, upload="prediction")
    rows = event_rows(
        private,
        first=first,
        times=1_764_273_600_123_456 + np.arange(count) * 20_017,
        model="12-0a1b2c3d",
        outputs=numbers.normal(0, 3, (count, 6)).astype(np.float32),
        labels=[np.array([3], np.float32)] * count,
        segments=None,
    )
    return encode_events(EventBatch("phone1", "1764273590000-0a1b2c", first, rows))


def test_an_answer_alone_takes_150_bytes_and_one_of_twelve_40() -> None:
    assert kafka_bytes(predictions(1)) <= 150
    assert kafka_bytes(predictions(12)) <= 12 * 40
    assert kafka_bytes(predictions(512)) <= 512 * 30


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
HEX = st.from_regex(r"[1-9][0-9]{0,4}-[0-9a-f]{8}", fullmatch=True)


@given(
    of=st.sampled_from([task, PREDICTION, HALF, NUMBERS]),
    first=st.integers(0, 2**62 - 20),
    times=st.lists(st.integers(0, 2**55), min_size=1, max_size=9),
    models=st.lists(NAMES | HEX, min_size=9, max_size=9),
    known=st.lists(st.booleans(), min_size=9, max_size=9),
    epoch=NAMES | st.just("1764273590000-0a1b2c") | st.just("0"),
    cut=st.tuples(st.integers(0, 8), st.integers(1, 9)),
)
def test_events_come_back_as_they_were(
    of: Task, first: int, times: list[int], models: list[str], known: list[bool], epoch: str,
    cut: tuple[int, int],
) -> None:  # fmt: skip
    n = len(times)
    numbers = np.random.default_rng(n)
    label = numbers.integers(0, 3, (n, of.label_size)).astype(np.float32)
    rows = event_rows(
        of,
        first=first,
        times=np.array(times),
        model=models[:n],
        outputs=numbers.normal(size=(n, of.outputs)),
        labels=[label[i] if known[i] else None for i in range(n)],
        segments=None if of is PREDICTION else numbers.normal(size=(n, *of.segment_shape)),
    )
    begin = min(cut[0], n - 1)
    part = rows.slice(begin, cut[1])  # an offset within its columns
    message = encode_events(EventBatch("d0", epoch, first + begin, part))
    assert is_compact(message)
    back = decode_event_message(of, *message)
    assert isinstance(back, EventBatch)
    assert (back.device, back.epoch, back.first) == ("d0", epoch, first + begin)
    assert back.rows.equals(part)
    back.rows.validate(full=True)


def test_a_body_has_the_bytes_of_the_description() -> None:
    rows = event_rows(
        PREDICTION, first=300, times=np.array([2**40, 2**40 + 10]), model="1-a",
        outputs=np.array([[1, 2, 4], [0, -1, 0.5]]), labels=[np.array([2], np.float32), None],
        segments=None,
    )  # fmt: skip
    body = (
        "02"  # rows
        "01 82 156c"  # one model: 1-a as the number ((1 * 17 + 1) * 17 + 16) * 17 + 10
        "01 0000000000010000 0a"  # the first time, and a difference of one byte
        "01 00000040"  # the first row has a label: 2.0
        "0000803f 00000040 00008040  00000000 000080bf 0000003f"
        "ac02"  # the first seq, 300
        "81 11"  # epoch 0 as the number 1 * 17 + 0
    )
    key, value, headers = encode_events(EventBatch("d0", "0", 300, rows))
    assert (key, value) == (b"d0", bytes.fromhex(body))
    assert [name for name, _ in headers] == [EVENTS_2]
    assert decode_event_message(PREDICTION, key, value, headers) == EventBatch("d0", "0", 300, rows)


def test_three_hundred_models_in_a_message_come_back() -> None:
    sent = batch(n=300, model=[f"{i}-aaaaaaaa" for i in range(300)])
    message = encode_events(sent)
    assert is_compact(message)
    assert decode_event_message(task, *message) == sent


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: nullable(rows),
        lambda rows: rows.slice(0, 0),
        lambda rows: rows.slice(1),  # does not begin with the batch's first seq
        lambda rows: rows.set_column(2, rows.schema.field(2), pa.array(["é"] * 4)),
        lambda rows: rows.set_column(2, rows.schema.field(2), pa.array(["a" * 128] * 4)),
        lambda rows: rows.set_column(
            5, rows.schema.field(5), pa.array([None] * 4, rows.schema.field(5).type)
        ),
        lambda rows: rows.select(["seq", "time", "model"]),
    ],
)
def test_what_it_cannot_carry_goes_as_an_arrow_stream(
    change: Callable[[pa.RecordBatch], pa.RecordBatch],
) -> None:
    changed = replace(batch(), rows=change(batch().rows))
    assert encode_events(changed) == encode_stream(changed)


def test_both_forms_of_the_same_events_are_the_same_events() -> None:
    compact, stream = encode_events(batch()), encode_stream(batch())
    assert is_compact(compact)
    assert not is_compact(stream)
    assert decode_event_message(task, *compact) == decode_event_message(task, *stream) == batch()
    assert len(compact[1]) < len(stream[1])


def named(text: bytes) -> Message:
    key, value, _ = GOOD
    return key, value, [(EVENTS_2, text)]


DIGEST = dict(GOOD[2])[EVENTS_2]
BLOCK = encode_block(columns_of("d0", "e-1", 10, batch().rows).columns)
PREFIX = len(BLOCK) - 4 * 40 * 4  # before the segments
TAIL = GOOD[1][len(BLOCK) :]  # seq 10, and "e-1"


@pytest.mark.parametrize(
    ("message", "reason", "says"),
    [
        (named(b"AAAAAA"), "wrong-schema", f"columns 'AAAAAA', not '{DIGEST.decode()}' of task"),
        (encode_events(batch(segments=None, task=PREDICTION)), "wrong-schema", "not"),
        (named(b""), "wrong-schema", "columns ''"),
        (named(b"\xff"), "bad-header", "UTF-8"),
        ((b"d/0", *GOOD[1:]), "wrong-key", "not a device's name"),
        ((b"\xff", *GOOD[1:]), "wrong-key", "not a device's name"),
        ((b"", *GOOD[1:]), "wrong-key", "not a device's name"),
        ((b"d0", b"", GOOD[2]), "bad-body", "ends early: 0 bytes"),
        ((b"d0", GOOD[1] + b"x", GOOD[2]), "bad-body", "1 bytes follow the rows"),
        ((b"d0", BLOCK + b"\x0a\x02 b", GOOD[2]), "bad-body", "epoch ' b'"),
        ((b"d0", BLOCK + b"\xff" * 10, GOOD[2]), "bad-body", "more than 9 bytes"),
        ((b"d0", b"\x00" + TAIL, GOOD[2]), "huge-batch", "0 rows"),
        ((b"d0", b"\xff\xff\xff\x7f" + TAIL, GOOD[2]), "huge-batch", "268435455 rows"),
        ((b"d0", b"\x02\x03" + TAIL, GOOD[2]), "bad-body", "3 models for 2 rows"),
        ((b"d0", b"\x02\x02\x01a\x01b\x00\x02" + TAIL, GOOD[2]), "bad-body", "model 2 of 2"),
        ((b"d0", b"\x02\x01\x01a\x03" + TAIL, GOOD[2]), "bad-body", "times have 3 bytes"),
        (encode_events(batch(outputs=np.full((4, 3), np.nan))), "not-finite", "outputs"),
        (encode_events(batch(segments=np.full((4, 2, 20), np.inf))), "not-finite", "segment"),
        (encode_events(batch(labels=[np.array([7], np.float32)] * 4)), "bad-label", "0..2"),
        (encode_events(batch(times=np.array([-1, 0, 1, 2]))), "bad-time", "1970"),
        (encode_events(batch(model="a b")), "bad-model", "'a b'"),
    ],
)
def test_what_is_wrong_is_named(message: Message, reason: str, says: str) -> None:
    assert is_compact(message)
    with pytest.raises(MalformedRecord) as caught:
        decode_event_message(task, *message)
    assert caught.value.reason == reason
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_body_that_is_cut_anywhere_is_refused() -> None:
    key, value, headers = GOOD
    for size in range(len(value)):
        with pytest.raises(MalformedRecord):
            decode_event_message(task, key, value[:size], headers)


def test_the_bytes_before_the_segments_are_zero() -> None:
    key, value, headers = GOOD
    filled = [at for at in range(PREFIX - 7, PREFIX) if value[at] == 0]
    junk = bytearray(value)
    junk[filled[-1]] = 1
    with pytest.raises(MalformedRecord, match="not zero"):
        decode_event_message(task, key, bytes(junk), headers)


def test_a_count_makes_no_memory_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes that announce the most rows are refused before a row of them is made."""
    monkeypatch.setattr(np, "zeros", lambda *_: pytest.fail("rows were allocated"))
    assert LAYOUT is not None
    with pytest.raises(MalformedRecord, match="ends early"):
        decode_rows(LAYOUT, b"\xa0\x8d\x06\x01\x01a\x01" + bytes(100), MAX_ROWS)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_bytes_whatever_raise_anything_else(data: st.DataObject) -> None:
    key, value, headers = GOOD
    junk = bytearray(value)
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, PREFIX) | st.integers(0, len(junk) - 1))
        junk[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(junk)))
    more = data.draw(st.binary(max_size=9))
    body = data.draw(st.sampled_from([bytes(junk[:cut]), bytes(junk), bytes(junk) + more, more]))
    fields = {EVENTS_2: data.draw(st.just(headers[0][1]) | st.binary(max_size=12))}
    with contextlib.suppress(MalformedRecord):
        back = decode_event_message(task, key, body, fields)
        assert isinstance(back, EventBatch)
        assert back.rows.num_rows == back.last - back.first + 1
        back.rows.validate(full=True)
