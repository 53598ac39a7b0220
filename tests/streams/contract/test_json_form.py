"""Events as JSON: what is taken, what is refused and by which name, and their published schema."""

import contextlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from streams.contract.errors import MalformedRecord
from streams.contract.events.batches import EventColumns
from streams.contract.events.json_form import (
    CERTAIN,
    decode_json,
    event_json_schema,
)
from streams.contract.events.json_items import MAX_ROWS, placed_epoch
from streams.contract.task import Segment, Task
from streams.segments.segmentation import segments_of
from tests.rig.made_up.payments_task import task as payments
from tests.rig.made_up.tiny_task import task as tiny

task = replace(tiny, segment=Segment(samples=2, hop=1))
targets = replace(task, classes=(), targets=("a", "b"))
prediction = replace(task, upload="prediction")
single = replace(task, segment=Segment(samples=1, hop=1))
TASKS = [task, targets, prediction, single]
PLACED = placed_epoch("0123456789", 1)
GOOD: dict[str, Any] = {"time_us": 5, "segment": {"x": [1, 2.5], "y": [3, 4]}, "answer": "fast"}


def decoded(
    event: object, of: Task = task, key: bytes | None = b"d0", offset: int = 3
) -> list[EventColumns]:
    data = event if isinstance(event, bytes) else json.dumps(event).encode()
    return decode_json(of, key, data, PLACED, offset)


def test_what_a_plain_producer_can_give_is_enough() -> None:
    [found] = decoded(GOOD)
    assert (found.device, found.epoch) == ("d0", "kafka-01234567-1")
    assert (found.first, found.last) == (3 * MAX_ROWS, 3 * MAX_ROWS)
    columns = found.columns
    assert columns.times.tolist() == [5]
    assert columns.names == ["external"]
    assert columns.outputs.tolist() == [[0, 0, CERTAIN]]
    assert columns.known.tolist() == [False]
    assert columns.segments is not None
    assert columns.segments.tolist() == [[1, 2.5, 3, 4]]


@pytest.mark.parametrize(
    ("changed", "of", "column", "wanted"),
    [
        ({"time_us": None, "time": "1970-01-01T01:00:00.000007+01:00"}, task, "times", 7),
        ({"segment": [[1, 2], [3, 4]]}, task, "segments", [1, 2, 3, 4]),
        ({"segment": {"x": 1, "y": [2]}}, single, "segments", [1, 2]),
        ({"answer": None, "outputs": [1, 2, 3]}, task, "outputs", [1, 2, 3]),
        ({"answer": 1}, task, "outputs", [0, CERTAIN, 0]),
        ({"answer": {"b": 2, "a": 1}}, targets, "outputs", [1, 2]),
        ({"answer": [1, 2]}, targets, "outputs", [1, 2]),
        ({"label": "middle"}, task, "labels", [1]),
        ({"answer": [1, 2], "label": [0.5, 0]}, targets, "labels", [0.5, 0]),
    ],
)
def test_values_may_have_other_forms(
    changed: dict[str, Any], of: Task, column: str, wanted: object
) -> None:
    event = GOOD | changed
    Draft202012Validator(event_json_schema(of)).validate(event)
    [found] = decoded(event, of)
    assert np.array_equal(getattr(found.columns, column)[0], wanted)


def test_a_list_has_consecutive_events_and_names_of_them() -> None:
    [found] = decoded([GOOD | {"event_id": "a"}, GOOD, GOOD | {"event_id": "c"}], offset=2)
    assert (found.first, found.last) == (2 * MAX_ROWS, 2 * MAX_ROWS + 2)
    assert found.ids == ["a", None, "c"]
    assert found.part(1, 3).ids == [None, "c"]


def test_without_a_key_the_field_is_the_device() -> None:
    events = [GOOD | {"device": name} for name in ("a", "a", "b", "a")]
    found = decoded(events, key=None)
    assert [(e.device, e.first % MAX_ROWS, e.count) for e in found] == [
        ("a", 0, 2), ("b", 2, 1), ("a", 3, 1),
    ]  # fmt: skip


def test_a_producers_own_numbers_are_used() -> None:
    events = [GOOD | {"epoch": "run-1", "seq": seq} for seq in (7, 8, 8, 20)]
    found = decoded(events)
    assert [(e.epoch, e.first, e.last) for e in found] == [
        ("run-1", 7, 8), ("run-1", 8, 8), ("run-1", 20, 20),
    ]  # fmt: skip


NAN = b'{"time_us": 1, "segment": [[1, NaN], [1, 2]], "answer": 1}'
KEYLESS = GOOD | {"epoch": "e", "seq": 1, "device": "d0"}
REFUSED: list[tuple[object, bytes | None, str, str]] = [
    (b"", b"d0", "not-json", "no header says"),
    (b"hello", b"d0", "not-json", "no header says"),
    (b'{"time_us": ', b"d0", "not-json", "truncated"),
    (b"\xff\xff", b"d0", "not-json", ""),
    (b"[" * 5000, b"d0", "wrong-schema", "[0]"),
    (7, b"d0", "wrong-schema", ""),
    ([], b"d0", "wrong-schema", "length >= 1"),
    (GOOD, b"a device", "wrong-key", "a device"),
    (GOOD, b"", "wrong-schema", "device: missing; the message's key is empty"),
    (GOOD | {"device": "d1"}, b"d0", "wrong-key", "d1"),
    (GOOD, None, "wrong-schema", ": device: missing"),
    ([GOOD], None, "wrong-schema", "[0].device: missing"),
    (GOOD | {"time": 5}, b"d0", "wrong-schema", "got `int`: microseconds are time_us"),
    (GOOD | {"lable": 1}, b"d0", "wrong-schema", "lable"),
    ([GOOD, GOOD | {"label": "quick"}], b"d0", "wrong-schema", "[1].label"),
    (GOOD | {"label": True}, b"d0", "wrong-schema", "label"),
    (GOOD | {"answer": 3}, b"d0", "wrong-schema", "answer"),
    (GOOD | {"outputs": [1, 2, 3]}, b"d0", "wrong-schema", "answer"),
    (GOOD | {"answer": None}, b"d0", "wrong-schema", "answer"),
    (GOOD | {"outputs": [1, 2], "answer": None}, b"d0", "wrong-schema", "outputs"),
    (GOOD | {"time": "2026-01-01T00:00:00Z"}, b"d0", "wrong-schema", "time"),
    (GOOD | {"time": "2026-01-01T00:00:00", "time_us": None}, b"d0", "wrong-schema", "time"),
    (GOOD | {"time": "1969-01-01T00:00:00Z", "time_us": None}, b"d0", "wrong-schema", "time"),
    (GOOD | {"time_us": -1}, b"d0", "wrong-schema", "time_us"),
    (GOOD | {"time_us": "5"}, b"d0", "wrong-schema", "time_us"),
    (GOOD | {"segment": {"x": [1, 2]}}, b"d0", "wrong-schema", "segment"),
    (GOOD | {"segment": {"x": [1, 2], "y": [1]}}, b"d0", "wrong-schema", "channel y"),
    (GOOD | {"segment": [[1, 2], [3, "4"]]}, b"d0", "wrong-schema", "channel y"),
    (GOOD | {"segment": [[1, 2], [3, 1e39]]}, b"d0", "wrong-schema", "channel y"),
    (GOOD | {"segment": [[1, 2], [3, 10**400]]}, b"d0", "wrong-schema", "channel y"),
    (GOOD | {"segment": None}, b"d0", "wrong-schema", "segment"),
    (NAN, b"d0", "not-json", "invalid character"),
    (GOOD | {"seq": 1}, b"d0", "wrong-schema", "seq"),
    (GOOD | {"epoch": "kafka-1", "seq": 1}, b"d0", "wrong-schema", "epoch"),
    (KEYLESS, None, "wrong-schema", "[0].seq"),
]


@pytest.mark.parametrize(("event", "key", "reason", "detail"), REFUSED)
def test_what_is_wrong_is_refused_and_the_field_is_named(
    event: object, key: bytes | None, reason: str, detail: str
) -> None:
    with pytest.raises(MalformedRecord) as caught:
        decoded(event, key=key)
    assert caught.value.reason == reason
    assert detail in str(caught.value)


def test_readings_do_not_leave_the_device_where_the_task_says_so() -> None:
    with pytest.raises(MalformedRecord, match="segment"):
        decoded(GOOD, prediction)
    assert decoded(GOOD | {"segment": None}, prediction)[0].columns.segments is None


# --- the schema says the same as the decoder ------------------------------------------------------

numbers = st.integers(-9, 9) | st.floats(-1e3, 1e3).filter(lambda x: x % 1 != 0) | st.just(1e40)
lists = st.lists(numbers, min_size=1, max_size=3)
junk = st.none() | st.booleans() | numbers | st.text(max_size=3)
values = st.sampled_from(["slow", "fast", "", 0, 2, 3]) | lists | junk
named = st.dictionaries(st.sampled_from("xyab"), lists | numbers, max_size=3)
FIELDS = {
    "device": st.sampled_from(["d0", "a b", "", None]),
    "time": st.sampled_from(["2026-01-01T00:00:00Z", None]),
    "time_us": st.sampled_from([0, 5, -1, 2**60, None]),
    "segment": st.lists(lists | numbers, min_size=1, max_size=3) | named | junk,
    "outputs": lists | junk,
    "answer": values | named,
    "label": values | named,
    "model": st.sampled_from(["m-1", "", "-", None]),
    "event_id": st.text(max_size=3) | st.none(),
    "epoch": st.sampled_from(["run", "kafka-1", "-", None]),
    "seq": st.sampled_from([0, 7, -1, 2**62, None]),
    "other": st.none(),
}
events = st.fixed_dictionaries({}, optional=FIELDS)


@st.composite
def nearly_good(draw: st.DrawFn) -> dict[str, Any]:
    """An event that is right but for a few fields."""
    changed = draw(st.sets(st.sampled_from(sorted(FIELDS)), max_size=3))
    return GOOD | {name: draw(FIELDS[name]) for name in sorted(changed)}


@pytest.mark.parametrize("of", TASKS)
@given(st.data())
def test_the_schema_accepts_what_the_decoder_accepts(of: Task, data: st.DataObject) -> None:
    event = data.draw(events | nearly_good() | st.lists(nearly_good(), max_size=2))
    try:
        decoded(event, of)
        accepted = True
    except MalformedRecord as exc:
        accepted = exc.reason == "wrong-key"  # which the schema does not know
    assert Draft202012Validator(event_json_schema(of)).is_valid(event) == accepted


@given(
    st.binary(max_size=200)
    | st.recursive(
        junk, lambda x: st.lists(x) | st.dictionaries(st.sampled_from([*FIELDS]), x)
    ).map(lambda found: json.dumps(found).encode())
)
def test_whatever_comes_is_events_or_is_refused(data: bytes) -> None:
    with contextlib.suppress(MalformedRecord):
        assert all(isinstance(each, EventColumns) for each in decoded(data))


def test_a_category_is_a_name_and_what_follows_from_the_time_may_be_left_out() -> None:
    """As the device has it; the time since the event before is the producer's to say."""
    *_, (at_us, _, cut, _) = segments_of(list(payments.readings("d0"))[:9], payments)
    *_, last = list(payments.readings("d0"))[:9]
    amount, shop, way = last.values  # type: ignore[union-attr]
    named = {"amount": amount, "merchant": shop, "way": way, "since": float(cut[5, 0])}
    event = {"time_us": at_us, "segment": named, "answer": "paid"}
    check = Draft202012Validator(event_json_schema(payments))
    check.validate(event)
    [found] = decoded(event, payments)
    assert found.columns.segments is not None
    np.testing.assert_allclose(found.columns.segments[0], cut[:, 0], rtol=1e-6)
    listed = [amount, None, [way], 1.5, 6, 0]
    check.validate(event | {"segment": listed})
    [found] = decoded(event | {"segment": listed}, payments)
    assert found.columns.segments is not None
    np.testing.assert_allclose(found.columns.segments[0], [amount, 0, *cut[2], 1.5, 6, 0])


@pytest.mark.parametrize(
    ("segment", "says"),
    [
        ({"amount": 1, "merchant": "a", "way": "card"}, "not so: since"),
        ({"amount": 1, "merchant": True, "way": "card", "since": 0}, "channel merchant"),
        ({"amount": "1", "merchant": "a", "way": "card", "since": 0}, "channel amount"),
        ({"amount": 1, "merchant": {}, "way": "card", "since": 0}, "channel merchant"),
        ([1, "a", "card"], "not a list of 6 channels"),
    ],
)
def test_a_value_that_is_not_of_its_channel_is_named(segment: object, says: str) -> None:
    event = {"time_us": 5, "segment": segment, "answer": "paid"}
    with pytest.raises(MalformedRecord, match=says):
        decoded(event, payments)
    assert not Draft202012Validator(event_json_schema(payments)).is_valid(event)
