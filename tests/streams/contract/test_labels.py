"""The record of labels that became known later."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.errors import MalformedRecord
from streams.contract.events.labels import LabelBatch, label_schema
from streams.contract.events.messages import encode_label_lines, encode_labels
from streams.contract.events.records import decode_event_message
from tests.rig.made_up.tiny_task import task

SOUND: dict[str, object] = {
    "from": 10, "to": 20, "label": [1.0], "told": 1_000_000, "source": "outcome",
}  # fmt: skip


def message(*rows: dict[str, object], first: int = 3) -> LabelBatch:
    body = encode_label_lines(rows)
    found = decode_event_message(task, *encode_labels("d0", "e1", first, body))
    assert isinstance(found, LabelBatch)
    return found


def test_what_was_told_arrives() -> None:
    found = message(SOUND, {**SOUND, "from": 20, "source": "user"})
    assert (found.device, found.epoch, found.first, found.last) == ("d0", "e1", 3, 4)
    assert found.rows.schema == label_schema(task)
    assert found.rows.column("label").to_pylist() == [[1.0], [1.0]]
    assert found.rows.column("source").to_pylist() == ["outcome", "user"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"from": 21}, "bad-document"),
        ({"from": -1}, "bad-document"),
        ({"to": 2**56}, "bad-document"),
        ({"told": -1}, "bad-document"),
        ({"label": [3.0]}, "bad-label"),
        ({"label": [0.5]}, "bad-label"),
        ({"label": [1e300]}, "bad-label"),
        ({"label": [float("nan")]}, "bad-document"),
        ({"source": "rumour"}, "bad-document"),
        ({"event_seq": 3}, "bad-document"),
        ({"event_epoch": "e1", "event_seq": -1}, "bad-document"),
        ({"label": [1.0, 2.0]}, "bad-label"),
    ],
)
def test_what_no_device_says_is_refused(changed: dict[str, object], reason: str) -> None:
    body = encode_label_lines([{**SOUND, **changed}])
    with pytest.raises(MalformedRecord) as raised:
        decode_event_message(task, *encode_labels("d0", "e1", 0, body))
    assert raised.value.reason == reason


def test_another_number_of_labels_than_the_header_says_is_refused() -> None:
    key, body, headers = encode_labels("d0", "e1", 0, encode_label_lines([SOUND, SOUND]))
    with pytest.raises(MalformedRecord, match="1 labels, not 2"):
        decode_event_message(task, key, body[: len(body) // 2], headers)


@given(st.binary(max_size=400), st.integers(0, 5))
def test_bytes_of_anyone_are_refused_and_nothing_else_happens(data: bytes, count: int) -> None:
    sound = encode_label_lines([SOUND])
    headers = encode_labels("d0", "e1", 0, b"\n" * (count + 1))[2]
    for body in (data, sound[: len(sound) // 2] + data, sound + data):
        try:
            found = decode_event_message(task, b"d0", body, headers)
        except MalformedRecord:
            continue
        assert isinstance(found, LabelBatch)
        assert found.rows.num_rows == count + 1
        assert np.isfinite(found.rows.column("label").flatten().to_numpy()).all()
