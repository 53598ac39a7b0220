"""Messages events/1 and drops/1: what is written comes back, and nothing else passes."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.contract.errors import MalformedRecord
from streams.contract.events.batches import encode_batch, float_rows, times_us
from streams.contract.events.messages import Drop, Headers, encode_drop
from streams.contract.events.records import EventBatch, decode_event_message, encode_stream
from streams.contract.task import Task
from tests.rig.made_up.event_rows import event_rows
from tests.rig.made_up.tiny_task import task

Message = tuple[bytes, bytes, Headers]


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


def reheaded(message: Message, **change: bytes | None) -> Message:
    key, value, headers = message
    fields = {**dict(headers), **change}
    return key, value, [(k, v) for k, v in fields.items() if v is not None]


def test_events_come_back_as_they_were() -> None:
    sent = batch()
    back = decode_event_message(task, *encode_stream(sent))
    assert back == sent
    assert isinstance(back, EventBatch)
    assert float_rows(back.rows.column("outputs"), 3).shape == (4, 3)
    assert times_us(back.rows.column("time")).tolist() == [0, 500_000, 1_000_000, 1_500_000]


def test_drops_come_back_as_they_were() -> None:
    drop = Drop("d0", "e-1", 3, 9, "spool-full")
    assert decode_event_message(task, *encode_drop(drop)) == drop


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (reheaded(encode_stream(batch()), schema=b"events/9"), "unknown-schema"),
        (reheaded(encode_stream(batch()), schema=None), "no-header"),
        (reheaded(encode_stream(batch()), device=b"d1"), "wrong-key"),
        (reheaded(encode_stream(batch()), device=b"../../etc"), "bad-header"),
        (reheaded(encode_stream(batch()), epoch=b"\xff"), "bad-header"),
        (reheaded(encode_stream(batch()), first=b"-1"), "bad-header"),
        (reheaded(encode_stream(batch()), first=b"9"), "wrong-seq"),
        (reheaded(encode_stream(batch()), last=b"9"), "bad-header"),
        (reheaded(encode_stream(batch()), last=b"9" * 18), "huge-batch"),
        (reheaded(encode_drop(Drop("d0", "e", 0, 1, "x")), reason=None), "no-header"),
        (encode_stream(batch(outputs=np.full((4, 3), np.nan))), "not-finite"),
        (encode_stream(batch(segments=np.full((4, 2, 20), np.inf))), "not-finite"),
        (encode_stream(batch(segments=None)), "no-segment"),
        (encode_stream(batch(labels=[np.array([7], np.float32)] * 4)), "bad-label"),
        (encode_stream(batch(times=np.array([-1, 0, 1, 2]))), "bad-time"),
        ((b"d0", b"garbage", encode_stream(batch())[2]), "not-arrow"),
        ((b"d0", b"", encode_stream(batch())[2]), "not-arrow"),
        ((b"d0", encode_stream(batch())[1][:-40], encode_stream(batch())[2]), "not-arrow"),
        (
            (b"d0", encode_batch(pa.record_batch({"x": [1]})), encode_stream(batch())[2]),
            "wrong-schema",
        ),
    ],
)
def test_what_is_wrong_is_named(message: Message, reason: str) -> None:
    with pytest.raises(MalformedRecord) as caught:
        decode_event_message(task, *message)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_a_prediction_task_needs_no_segment() -> None:
    private = replace(task, upload="prediction")
    sent = encode_stream(batch(segments=None, task=private))
    back = decode_event_message(private, *sent)
    assert isinstance(back, EventBatch)
    assert back.rows.column("segment").null_count == 4
    assert back == batch(segments=None, task=private)
    many = encode_stream(batch(n=1000, segments=None, task=private))[1]
    assert len(many) < 1000 * 60  # nothing stands in the segments' place
    with pytest.raises(MalformedRecord, match="segment is"):  # nor is it taken from who sends them
        decode_event_message(private, *encode_stream(batch()))


GOOD = encode_stream(batch())


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_bytes_whatever_raise_anything_else(data: st.DataObject) -> None:
    key, value, headers = GOOD
    junk = bytearray(value)
    for _ in range(data.draw(st.integers(0, 6))):
        junk[data.draw(st.integers(0, len(junk) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(junk)))
    fields = dict(headers)
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=2)):
        fields[name] = data.draw(st.binary(max_size=24))
    body = data.draw(st.sampled_from([bytes(junk[:cut]), bytes(junk), value]))
    try:
        back = decode_event_message(task, key, body, fields)
    except MalformedRecord:
        return
    assert isinstance(back, EventBatch | Drop)
    if isinstance(back, EventBatch):
        assert back.rows.num_rows == back.last - back.first + 1


def test_float16_halves_a_segment_and_keeps_it_finite() -> None:
    half = replace(task, upload_dtype="float16")
    segments = np.linspace(-2, 2, 4 * 40, dtype=np.float32).reshape(4, 2, 20)
    segments[0, 0, 0], segments[0, 0, 1] = 1e9, -1e9
    fields = {
        "first": 0, "times": np.arange(4), "model": "1-aaaaaaaa",
        "outputs": np.ones((4, 3), np.float32), "labels": [None] * 4,
    }  # fmt: skip
    rows = event_rows(half, **fields, segments=segments)  # type: ignore[arg-type]
    whole = event_rows(task, **fields, segments=segments)  # type: ignore[arg-type]
    sent = encode_stream(EventBatch("d0", "e", 0, rows))
    back = decode_event_message(half, *sent)
    assert isinstance(back, EventBatch)
    found = float_rows(back.rows.column("segment"), 40)
    assert found.dtype == np.float16
    assert found[0, :2].tolist() == [65504.0, -65504.0]
    assert np.allclose(found.reshape(-1)[2:], segments.reshape(-1)[2:], atol=2e-3)
    assert rows.column("segment").nbytes * 2 == whole.column("segment").nbytes
    with pytest.raises(MalformedRecord, match="segment is"):
        decode_event_message(task, *sent)


def stream(*parts: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, parts[0].schema) as writer:
        for part in parts:
            writer.write_batch(part)
    return bytes(sink.getvalue())


def nullable(rows: pa.RecordBatch) -> pa.RecordBatch:
    schema = pa.schema([field.with_nullable(True) for field in rows.schema])
    return pa.RecordBatch.from_arrays(rows.columns, schema=schema)


def reordered(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows.select(list(reversed(rows.schema.names)))


def loose_lists(rows: pa.RecordBatch) -> pa.RecordBatch:
    """As pandas and many writers have it: lists without a length of their own."""
    columns = {
        field.name: pa.array(rows.column(field.name).to_pylist(), pa.list_(pa.float32()))
        if pa.types.is_fixed_size_list(field.type)
        else rows.column(field.name)
        for field in rows.schema
    }
    return pa.RecordBatch.from_pydict(columns)


@pytest.mark.parametrize("how", [nullable, reordered, loose_lists])
def test_columns_of_other_producers_are_taken_where_nothing_is_lost(
    how: Callable[[pa.RecordBatch], pa.RecordBatch],
) -> None:
    key, _, headers = encode_stream(batch())
    assert decode_event_message(task, key, stream(how(batch().rows)), headers) == batch()


def test_several_batches_in_a_message_are_one() -> None:
    key, _, headers = encode_stream(batch())
    rows = batch().rows
    value = stream(rows.slice(0, 1), rows.slice(1, 3))
    assert decode_event_message(task, key, value, headers) == batch()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows.select(["seq", "time"]), "columns are missing: model, outputs, label"),
        (lambda rows: rows.append_column("x", pa.array([1] * 4)), "columns are unknown: x"),
        (
            lambda rows: rows.set_column(0, "seq", rows.column("seq").cast(pa.int32())),
            "column seq is int32, not int64",
        ),
        (
            lambda rows: rows.set_column(
                3, "outputs", pa.array([[0.0] * 3] * 4, pa.list_(pa.float64()))
            ),
            "column outputs is list<item: double>, not fixed_size_list",
        ),
    ],
)
def test_what_cannot_be_taken_is_named_by_its_real_difference(
    change: Callable[[pa.RecordBatch], pa.RecordBatch], says: str
) -> None:
    key, _, headers = encode_stream(batch())
    with pytest.raises(MalformedRecord, match=f"wrong-schema: {says}"):
        decode_event_message(task, key, stream(change(batch().rows)), headers)


def test_a_null_where_none_may_be_is_named() -> None:
    rows = nullable(batch().rows)
    models = pa.array([None, *rows.column("model").to_pylist()[1:]], pa.string())
    key, _, headers = encode_stream(batch())
    with pytest.raises(MalformedRecord, match="null: column model has nulls"):
        decode_event_message(task, key, stream(rows.set_column(2, "model", models)), headers)


def test_a_list_of_another_length_is_refused() -> None:
    rows = loose_lists(batch().rows)
    short = pa.array([[0.0] * 2] * 4, pa.list_(pa.float32()))
    key, _, headers = encode_stream(batch())
    with pytest.raises(MalformedRecord, match="column outputs has a list of 2 values, not 3"):
        decode_event_message(task, key, stream(rows.set_column(3, "outputs", short)), headers)


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_lists_that_are_all_null_are_no_end_of_the_process(
    kind: Callable[[pa.DataType], pa.DataType],
) -> None:
    """Arrow's own cast dies of them."""
    key, _, headers = encode_stream(batch())
    nothing = pa.array([None] * 4, kind(pa.float32()))
    sent = loose_lists(batch().rows).set_column(4, "label", nothing)
    found = decode_event_message(task, key, stream(sent), headers)
    assert isinstance(found, EventBatch)
    assert found.rows.column("label").null_count == 4
    with pytest.raises(MalformedRecord, match="null: column outputs has nulls"):
        decode_event_message(task, key, stream(sent.set_column(3, "outputs", nothing)), headers)


def test_a_label_column_without_a_value_may_have_no_type() -> None:
    key, _, headers = encode_stream(batch())
    sent = batch().rows.set_column(4, "label", pa.nulls(4))
    found = decode_event_message(task, key, stream(sent), headers)
    assert isinstance(found, EventBatch)
    assert found.rows.column("label").null_count == 4
    nothing = batch().rows.set_column(3, "outputs", pa.nulls(4))
    with pytest.raises(MalformedRecord, match="column outputs is null, not fixed_size_list"):
        decode_event_message(task, key, stream(nothing), headers)


@given(
    rows=st.lists(
        st.none() | st.lists(st.none() | st.floats(width=32), max_size=5), min_size=4, max_size=4
    ),
    name=st.sampled_from(["outputs", "label", "segment"]),
)
def test_whatever_lists_come_they_are_taken_or_refused(
    rows: list[list[float | None] | None], name: str
) -> None:
    key, _, headers = encode_stream(batch())
    sent = loose_lists(batch().rows)
    i = sent.schema.get_field_index(name)
    changed = sent.set_column(i, name, pa.array(rows, pa.list_(pa.float32())))
    with contextlib.suppress(MalformedRecord):
        decode_event_message(task, key, stream(changed), headers)
