"""Labels from elsewhere: what is taken, and what is refused by which name."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.errors import MalformedRecord
from streams.contract.events.json_items import KnownLabel, decode_known_labels
from streams.contract.events.labels import known_label_batches
from tests.rig.made_up.tiny_task import task

GOOD: dict[str, Any] = {"event_id": "order-7", "label": "fast", "known_us": 9}


def decoded(value: object, key: bytes | None = b"d0") -> list[tuple[str, KnownLabel]]:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return decode_known_labels(task, key, data)


def test_a_label_names_its_event_in_one_of_three_ways() -> None:
    seq = {"epoch": "kafka-0a1b2c3d-1", "seq": 700001, "label": 1}
    at = {"time": "1970-01-01T00:00:00.000005Z", "label": "slow", "known": "1970-01-01T00:00:01Z"}
    found = decoded([GOOD, seq, at, {"time_us": 6, "label": 0, "device": "d0"}])
    one, other, third, fourth = (
        batch.rows.to_pylist() for batch in known_label_batches(task, found[:1], "e", 0, 77)
        + known_label_batches(task, found[1:2], "e", 1, 77)
        + known_label_batches(task, found[2:3], "e", 2, 77)
        + known_label_batches(task, found[3:], "e", 3, 77)
    )  # fmt: skip
    assert one[0]["event_id"] == "order-7"
    assert one[0]["label"] == [2.0]
    assert (other[0]["event_epoch"], other[0]["event_seq"]) == (seq["epoch"], seq["seq"])
    assert one[0]["from"] is other[0]["from"] is None
    told = [round(row[0]["told"].timestamp() * 1e6) for row in (one, other, third)]
    assert told == [9, 77, 1_000_000]
    times = [round(row[0]["from"].timestamp() * 1e6) for row in (third, fourth)]
    assert times == [5, 6]


def test_labels_of_several_devices_are_numbered_in_their_order() -> None:
    names = ["a", "a", "b", "a"]
    found = decoded([GOOD | {"device": name} for name in names], key=None)
    batches = known_label_batches(task, found, "e", 10, 0)
    assert [(b.device, b.first, b.last) for b in batches] == [
        ("a", 10, 11), ("b", 12, 12), ("a", 13, 13),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "reason", "detail"),
    [
        ({"label": None}, "wrong-schema", "label"),
        ({"label": "quick"}, "wrong-schema", "label"),
        ({"event_id": None}, "wrong-schema", "event_id"),
        ({"time_us": 5}, "wrong-schema", "event_id"),
        ({"event_id": None, "seq": 5}, "wrong-schema", "seq"),
        ({"event_id": None, "time_us": -5}, "wrong-schema", "time_us"),
        ({"known": "yesterday"}, "wrong-schema", "known"),
        ({"known": "2026-01-01T00:00:00Z"}, "wrong-schema", "known"),
        ({"weight": 1}, "wrong-schema", "weight"),
        ({"device": "d1"}, "wrong-key", "d1"),
    ],
)
def test_misfits_are_refused_by_name(changed: dict[str, Any], reason: str, detail: str) -> None:
    with pytest.raises(MalformedRecord) as caught:
        decoded([GOOD, GOOD | changed])
    assert caught.value.reason == reason
    assert detail in str(caught.value)


junk = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
fields = st.sampled_from(sorted(KnownLabel.__struct_fields__))


@given(
    st.binary(max_size=200)
    | (junk | st.dictionaries(fields, junk) | st.lists(st.dictionaries(fields, junk))).map(
        lambda found: json.dumps(found).encode()
    )
)
def test_whatever_comes_is_labels_or_is_refused(data: bytes) -> None:
    with contextlib.suppress(MalformedRecord):
        known_label_batches(task, decoded(data), "e", 0, 0)
