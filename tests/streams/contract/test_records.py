"""Messages of `events` in both forms: what is written comes back, it is small, and nothing else
passes."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatchBuilder

from streams.contract.errors import MalformedRecord
from streams.contract.events.batches import (
    EVENT_ID,
    EventColumns,
    all_finite,
    columns_of,
    encode_batch,
)
from streams.contract.events.compact import decode_rows, encode_block
from streams.contract.events.messages import EVENTS_2, Drop, Headers, encode_drop, task_layout
from streams.contract.events.records import (
    MAX_ROWS,
    EventBatch,
    decode_columns,
    decode_event_message,
    encode_events,
    encode_stream,
)
from streams.contract.task import Segment, Task
from streams.tasks import har
from tests.rig.made_up.event_rows import event_rows
from tests.rig.made_up.tiny_task import task

Message = tuple[bytes, bytes, Headers]
Rows = Callable[[pa.RecordBatch], pa.RecordBatch]

PREDICTION = replace(task, upload="prediction")
SHORTER = replace(task, segment=Segment(samples=16, hop=8))
NUMBERS = replace(task, classes=(), targets=("u", "v"), tolerance=1.0)
CODECS = (encode_events, encode_stream)


@given(st.lists(st.floats(width=32), min_size=6, max_size=60))
def test_numbers_are_finite_however_large_they_are(found: list[float]) -> None:
    values = np.array(found[: len(found) // 6 * 6], np.float32).reshape(-1, 2, 3)
    assert all_finite(values) == all(map(math.isfinite, values.ravel().tolist()))


def batch(n: int = 4, first: int = 10, task: Task = task, **change: object) -> EventBatch:
    fields: dict[str, object] = {
        "first": first,
        "times": np.arange(n) * 500_000,
        "model": "1-aaaaaaaa",
        "outputs": np.ones((n, 3), np.float32),
        "labels": [None if i % 2 else np.array([1], np.float32) for i in range(n)],
        "segments": np.zeros((n, *task.segment_shape), np.float32),
    }
    rows = event_rows(task, **{**fields, **change})  # type: ignore[arg-type]
    return EventBatch("d0", "e-1", first, rows)


ROWS = batch().rows
GOOD, STREAM = encode_events(batch()), encode_stream(batch())


def is_compact(message: Message) -> bool:
    return [name for name, _ in message[2]] == [EVENTS_2]


# --- what is written comes back ------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
HEX = st.from_regex(r"[1-9][0-9]{0,4}-[0-9a-f]{8}", fullmatch=True)


@given(
    of=st.sampled_from([task, PREDICTION, SHORTER, NUMBERS]),
    first=st.integers(0, 2**62 - 20),
    times=st.lists(st.integers(0, 2**55), min_size=1, max_size=9),
    models=st.lists(NAMES | HEX, min_size=9, max_size=9),
    known=st.lists(st.booleans(), min_size=9, max_size=9),
    epoch=NAMES | st.just("1764273590000-0a1b2c") | st.just("0"),
    cut=st.tuples(st.integers(0, 8), st.integers(1, 9)),
    codec=st.sampled_from(CODECS),
)
def test_events_come_back_as_they_were(
    of: Task, first: int, times: list[int], models: list[str], known: list[bool], epoch: str,
    cut: tuple[int, int], codec: Callable[[EventBatch], Message],
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
    sent = EventBatch("d0", epoch, first + begin, rows.slice(begin, cut[1]))  # has an offset
    message = codec(sent)
    assert is_compact(message) == (codec is encode_events)
    back = decode_event_message(of, *message)
    assert isinstance(back, EventBatch)
    assert back == sent
    back.rows.validate(full=True)
    found, last = decode_columns(of, *message), sent.rows.num_rows
    assert isinstance(found, EventColumns)
    for begin, end in ((0, last), (0, 1), (last // 2, last)):
        part = found.part(begin, end)
        assert (part.first, part.last) == (sent.first + begin, sent.first + end - 1)
        assert part.rows.equals(sent.rows.slice(begin, end - begin))


@pytest.mark.parametrize("ids", [["order-7", None, "é", "x" * 128], [None] * 4])
def test_names_of_events_come_back(ids: list[str | None]) -> None:
    rows = ROWS.append_column(EVENT_ID, pa.array(ids, pa.string()))
    found = decode_columns(task, *encode_events(replace(batch(), rows=rows)))
    assert isinstance(found, EventColumns)
    assert found.ids == ids
    assert found.rows.equals(rows)
    assert found.part(1, 3).rows.equals(rows.slice(1, 2))


def test_drops_come_back_as_they_were() -> None:
    drop = Drop("d0", "e-1", 3, 9, "spool-full")
    assert decode_event_message(task, *encode_drop(drop)) == drop


def test_three_hundred_models_in_a_message_come_back() -> None:
    sent = batch(n=300, model=[f"{i}-aaaaaaaa" for i in range(300)])
    message = encode_events(sent)
    assert is_compact(message)
    assert decode_event_message(task, *message) == sent


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


def kafka_bytes(count: int) -> int:
    """The size of a Kafka record batch with one message, as the device's producer makes it, of
    answers of HAR's task, whose values do not compress, each with a label."""
    numbers = np.random.default_rng(37)
    rows = event_rows(
        replace(har.task, upload="prediction"),
        first=37,
        times=1_764_273_600_123_456 + np.arange(count) * 20_017,
        model="12-0a1b2c3d",
        outputs=numbers.normal(0, 3, (count, 6)).astype(np.float32),
        labels=[np.array([3], np.float32)] * count,
        segments=None,
    )
    message = encode_events(EventBatch("phone1", "1764273590000-0a1b2c", 37, rows))
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=DefaultRecordBatchBuilder.CODEC_ZSTD, is_transactional=False,
        producer_id=7, producer_epoch=0, base_sequence=5, batch_size=1_000_000,
    )  # fmt: skip
    builder.append(0, 1_764_273_600_000, *message)
    return len(builder.build())


@pytest.mark.parametrize(("count", "most"), [(1, 150), (12, 40), (512, 30)])
def test_an_answer_takes_few_bytes(count: int, most: int) -> None:
    assert kafka_bytes(count) <= count * most


def test_a_prediction_task_sends_nothing_in_the_segments_place() -> None:
    many = encode_stream(batch(n=1000, segments=None, task=PREDICTION))[1]
    assert len(many) < 1000 * 60


# --- Arrow of other producers --------------------------------------------------------------------


def stream(*parts: pa.RecordBatch) -> Message:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, parts[0].schema) as writer:
        for part in parts:
            writer.write_batch(part)
    return b"d0", bytes(sink.getvalue()), STREAM[2]


def nullable(rows: pa.RecordBatch) -> pa.RecordBatch:
    schema = pa.schema([field.with_nullable(True) for field in rows.schema])
    return pa.RecordBatch.from_arrays(rows.columns, schema=schema)


def loose_lists(rows: pa.RecordBatch) -> pa.RecordBatch:
    """As pandas and many writers have it: lists without a length of their own."""
    columns = {
        field.name: pa.array(rows.column(field.name).to_pylist(), pa.list_(pa.float32()))
        if pa.types.is_fixed_size_list(field.type)
        else rows.column(field.name)
        for field in rows.schema
    }
    return pa.RecordBatch.from_pydict(columns)


def with_column(name: str, values: pa.Array, rows: pa.RecordBatch = ROWS) -> pa.RecordBatch:
    return rows.set_column(rows.schema.get_field_index(name), name, values)


LOOSE = loose_lists(ROWS)
NOTHING = [pa.array([None] * 4, kind(pa.float32())) for kind in (pa.list_, pa.large_list)]


@pytest.mark.parametrize(
    "parts",
    [
        [nullable(ROWS)],
        [ROWS.select(list(reversed(ROWS.schema.names)))],
        [LOOSE],
        [ROWS.slice(0, 1), ROWS.slice(1, 3)],
    ],
)
def test_arrow_of_other_producers_is_taken_where_nothing_is_lost(
    parts: list[pa.RecordBatch],
) -> None:
    assert decode_event_message(task, *stream(*parts)) == batch()


@pytest.mark.parametrize("labels", [*NOTHING, pa.nulls(4)])
def test_lists_that_are_all_null_are_no_end_of_the_process(labels: pa.Array) -> None:
    """Arrow's own cast dies of them; pandas makes a column without a type of them."""
    found = decode_event_message(task, *stream(with_column("label", labels, LOOSE)))
    assert isinstance(found, EventBatch)
    assert found.rows.column("label").null_count == 4


@given(
    rows=st.lists(
        st.none() | st.lists(st.none() | st.floats(width=32), max_size=5), min_size=4, max_size=4
    ),
    name=st.sampled_from(["outputs", "label", "segment"]),
)
def test_whatever_lists_come_they_are_taken_or_refused(
    rows: list[list[float | None] | None], name: str
) -> None:
    changed = with_column(name, pa.array(rows, pa.list_(pa.float32())), LOOSE)
    with contextlib.suppress(MalformedRecord):
        decode_event_message(task, *stream(changed))


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
def test_what_the_compact_form_cannot_carry_goes_as_arrow(change: Rows) -> None:
    changed = replace(batch(), rows=change(ROWS))
    assert encode_events(changed) == encode_stream(changed)


# --- and nothing else passes ---------------------------------------------------------------------

DIGEST = dict(GOOD[2])[EVENTS_2].decode()
BLOCK = encode_block(columns_of("d0", "e-1", 10, ROWS).columns)
PREFIX = len(BLOCK) - 4 * 40 * 4  # before the segments
TAIL = GOOD[1][len(BLOCK) :]  # seq 10, and "e-1"


def reheaded(message: Message, **change: bytes | None) -> Message:
    key, value, headers = message
    fields = {**dict(headers), **change}
    return key, value, [(k, v) for k, v in fields.items() if v is not None]


def keyed(key: bytes) -> Message:
    return key, *GOOD[1:]


def body(value: bytes) -> Message:
    return b"d0", value, GOOD[2]


def arrow(value: bytes) -> Message:
    return b"d0", value, STREAM[2]


DROP = encode_drop(Drop("d0", "e", 0, 1, "x"))
DOUBLES = pa.array([[0.0] * 3] * 4, pa.list_(pa.float64()))
SHORT = pa.array([[0.0] * 2] * 4, pa.list_(pa.float32()))
MODELS = pa.array([None, "1-a", "1-a", "1-a"], pa.string())
WRONG: list[tuple[Message, str, str]] = [
    (reheaded(STREAM, schema=b"events/9"), "unknown-schema", "'events/9'"),
    (reheaded(STREAM, schema=None), "no-header", "schema"),
    (reheaded(STREAM, device=b"d1"), "wrong-key", "'d1'"),
    (reheaded(STREAM, device=b"../../etc"), "bad-header", "etc"),
    (reheaded(STREAM, epoch=b"\xff"), "bad-header", "UTF-8"),
    (reheaded(STREAM, first=b"-1"), "bad-header", "'-1'"),
    (reheaded(STREAM, first=b"9"), "wrong-seq", "9..13"),
    (reheaded(STREAM, last=b"9"), "bad-header", "10..9"),
    (reheaded(STREAM, last=str(2**63).encode()), "bad-header", "last"),
    (reheaded(STREAM, last=b"9" * 18), "huge-batch", "rows"),
    (reheaded(DROP, reason=None), "no-header", "reason"),
    (reheaded(DROP, last=b"200000000"), "huge-drop", "at most"),
    (encode_stream(batch(segments=None)), "no-segment", "teacher"),
    (arrow(b"garbage"), "not-arrow", ""),
    (arrow(b""), "not-arrow", ""),
    (arrow(STREAM[1][:-40]), "not-arrow", ""),
    (arrow(encode_batch(ROWS.slice(0, 0))), "wrong-seq", "10..13"),
    (stream(ROWS, ROWS), "wrong-seq", "10..13"),
    (stream(ROWS.select(["seq", "time"])), "wrong-schema", "columns are missing: model, outputs"),
    (stream(ROWS.append_column("x", ROWS.column(0))), "wrong-schema", "columns are unknown: x"),
    (stream(with_column("seq", ROWS["seq"].cast(pa.int32()))), "wrong-schema", "seq is int32, not"),
    (stream(with_column("outputs", DOUBLES)), "wrong-schema", "outputs is list<item: double>, not"),
    (stream(with_column("outputs", pa.nulls(4))), "wrong-schema", "outputs is null, not"),
    (stream(with_column("outputs", SHORT, LOOSE)), "wrong-schema", "list of 2 values, not 3"),
    (stream(with_column("outputs", NOTHING[0], LOOSE)), "null", "column outputs has nulls"),
    (stream(with_column("model", MODELS, nullable(ROWS))), "null", "column model has nulls"),
    (encode_stream(batch(task=SHORTER)), "wrong-schema", "segment is"),
    (stream(ROWS.append_column("event_id", ROWS["seq"])), "wrong-schema", "event_id is int64, not"),
    *(
        (
            stream(ROWS.append_column("event_id", pa.array(["a", None, "b", name]))),
            "bad-id",
            "event",
        )
        for name in ("", "x" * 129, "a\n")
    ),
    (reheaded(GOOD, e2=b"AAAAAA"), "wrong-schema", f"columns 'AAAAAA', not '{DIGEST}' of task"),
    (encode_events(batch(segments=None, task=PREDICTION)), "wrong-schema", "not"),
    (reheaded(GOOD, e2=b""), "wrong-schema", "columns ''"),
    (reheaded(GOOD, e2=b"\xff"), "bad-header", "UTF-8"),
    (keyed(b"d/0"), "wrong-key", "not a device's name"),
    (keyed(b"\xff"), "wrong-key", "not a device's name"),
    (keyed(b""), "wrong-key", "not a device's name"),
    (body(b""), "bad-body", "ends early: 0 bytes"),
    (body(GOOD[1] + b"x"), "bad-body", "1 bytes follow the rows"),
    (body(BLOCK + b"\x0a\x02 b"), "bad-body", "epoch ' b'"),
    (body(BLOCK + b"\xff" * 10), "bad-body", "more than 9 bytes"),
    (body(b"\x00" + TAIL), "huge-batch", "0 rows"),
    (body(b"\xff\xff\xff\x7f" + TAIL), "huge-batch", "268435455 rows"),
    (body(b"\x02\x03" + TAIL), "bad-body", "3 models for 2 rows"),
    (body(b"\x02\x02\x01a\x01b\x00\x02" + TAIL), "bad-body", "model 2 of 2"),
    (body(b"\x02\x01\x01a\x03" + TAIL), "bad-body", "times have 3 bytes"),
    (body(GOOD[1][: PREFIX - 1] + b"\x01" + GOOD[1][PREFIX:]), "bad-body", "not zero"),
]
VALUES: list[tuple[dict[str, object], str, str]] = [
    ({"outputs": np.full((4, 3), np.nan)}, "not-finite", "outputs"),
    ({"segments": np.full((4, 2, 20), np.inf)}, "not-finite", "segment"),
    ({"labels": [np.array([7], np.float32)] * 4}, "bad-label", "0..2"),
    ({"times": np.array([-1, 0, 1, 2])}, "bad-time", "1970"),
    ({"times": np.array([0, 1, 2, 10**17])}, "bad-time", "3100"),
    ({"model": "a b"}, "bad-model", "'a b'"),
]
WRONG += [
    (codec(batch(**change)), reason, says) for change, reason, says in VALUES for codec in CODECS
]


@pytest.mark.parametrize(("message", "reason", "says"), WRONG)
def test_what_is_wrong_is_named(message: Message, reason: str, says: str) -> None:
    with pytest.raises(MalformedRecord) as caught:
        decode_event_message(task, *message)
    assert caught.value.reason == reason
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_segments_are_not_taken_where_a_task_uploads_none() -> None:
    with pytest.raises(MalformedRecord, match="segment is"):
        decode_event_message(PREDICTION, *STREAM)


def test_a_body_that_is_cut_anywhere_is_refused() -> None:
    for size in range(len(GOOD[1])):
        with pytest.raises(MalformedRecord):
            decode_event_message(task, *body(GOOD[1][:size]))


def test_a_count_makes_no_memory_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes that announce the most rows are refused before a row of them is made."""
    layout = task_layout(task)
    monkeypatch.setattr(np, "zeros", lambda *_: pytest.fail("rows were allocated"))
    with pytest.raises(MalformedRecord, match="ends early"):
        decode_rows(layout, b"\xa0\x8d\x06\x01\x01a\x01" + bytes(100), MAX_ROWS)


@settings(max_examples=800, deadline=None)
@given(st.data(), st.sampled_from([GOOD, STREAM]))
def test_no_bytes_whatever_raise_anything_else(data: st.DataObject, sound: Message) -> None:
    key, value, headers = sound
    junk = bytearray(value)
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, PREFIX) | st.integers(0, len(junk) - 1))
        junk[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(junk)))
    more = data.draw(st.binary(max_size=9))
    bodies = [bytes(junk[:cut]), bytes(junk), bytes(junk) + more, more, value]
    fields = dict(headers)
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=2)):
        fields[name] = data.draw(st.binary(max_size=24))
    with contextlib.suppress(MalformedRecord):
        back = decode_event_message(task, key, data.draw(st.sampled_from(bodies)), fields)
        assert isinstance(back, EventBatch | Drop)
        if isinstance(back, EventBatch):
            assert back.rows.num_rows == back.last - back.first + 1
            back.rows.validate(full=True)
