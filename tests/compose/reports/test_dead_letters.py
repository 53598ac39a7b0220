"""Dead letters: joined from their parts, named by their offset, and sent again as they were."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from compose.reports.dead_letters import find, join_parts, read_letters, replay, without_copied
from streams.contract.errors import MalformedRecord, UsageError
from streams.contract.events.messages import Headers
from streams.contract.topics import topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings
from streams.worker.commit.messages import PART_BYTES, Incoming, dead_letters_of
from tests.rig.made_up.tiny_task import task


def received(
    value: bytes,
    offset: int,
    first: int = 0,
    reason: str = "not-arrow",
    headers: Sequence[tuple[str, bytes]] = (("schema", b"events/1"), ("device", b"d0")),
) -> list[Received]:
    """What the topic holds of one malformed message."""
    incoming = Incoming(3, offset, b"d0", value, headers)
    letters = dead_letters_of(task, incoming, MalformedRecord(reason, "no Arrow stream"))
    return [
        Received(m.topic, 0, first + i, m.key, m.value, m.headers) for i, m in enumerate(letters)
    ]


def test_parts_are_joined_and_a_letter_that_was_written_twice_is_one() -> None:
    value = bytes(range(256)) * (2 * PART_BYTES // 256 + 10)
    first = received(value, offset=7)
    assert len(first) == 3
    again = received(value, offset=7, first=len(first))
    other = received(b"x", offset=8, first=2 * len(first))
    letters = join_parts([*first, *again, *other, *received(b"x", offset=8, first=7)])
    assert [letter.offset for letter in letters] == [0, 6]
    assert [letter.value for letter in letters] == [value, b"x"]
    [torn] = join_parts(first[:2])
    assert not torn.whole


def test_a_message_that_is_refused_for_two_reasons_is_two_letters() -> None:
    one = received(b"x", offset=8)
    assert len(join_parts([*one, *received(b"x", 8, first=1, reason="teacher-failed")])) == 2
    assert len(join_parts([*one, *received(b"y", 8, first=1)])) == 2  # of a topic made anew


def test_a_letter_that_was_refused_again_is_sent_as_its_newest_copy_alone() -> None:
    """Each time it was sent along with its copies, so that they doubled."""
    of: Headers = [("schema", b"events/1"), ("again", b"0")]
    first, other = received(b"x", 8), received(b"y", 9, first=1)
    copy, twice = received(b"x", 20, 2, headers=of), received(b"x", 21, 3, headers=of)
    letters = join_parts([*first, *other, *copy, *twice])
    assert [letter.offset for letter in letters] == [0, 1, 2]  # it was sent twice before
    assert [letter.offset for letter in without_copied(letters)] == [1, 2]
    third = received(b"x", 22, 4, headers=[("again", b"2")], reason="teacher-failed")
    assert [x.offset for x in without_copied(join_parts([*first, *other, *copy, *third]))] == [1, 4]
    [stranger] = received(b"z", 23, 2, headers=[("again", b"1")])
    kept = join_parts([*other, replace(stranger, key=b"d1")])
    assert without_copied(kept) == kept  # no device hides another one's


def test_an_unknown_offset_is_a_usage_error() -> None:
    letters = join_parts(received(b"junk", offset=7))
    assert (find(letters, 0).source, find(letters, 0).reason) == ("tiny.v1.events/3/7", "not-arrow")
    with pytest.raises(UsageError, match="no dead letter at offset 9"):
        find(letters, 9)


def test_a_letter_of_events_with_the_numbers_of_others_is_not_sent_again() -> None:
    """Once the device's watermark has passed it would be taken for a repeat, and lost."""
    letters = join_parts([*received(b"x", 8), *received(b"y", 9, first=1, reason="seq-reused")])
    with pytest.raises(UsageError, match=r"offset 1 cannot be sent again.* in a new epoch"):
        replay(BrokerSettings(bootstrap="127.0.0.1:1"), "tiny.v1", letters)


@pytest.mark.kafka
def test_a_letter_goes_back_to_events_as_it_was(kafka: BrokerSettings) -> None:
    name = "letters"
    ensure_topics(kafka, topic_specs(name, 2))
    producer = Producer(kafka)
    for message in received(b"junk", offset=7):
        producer.put(f"{name}.dead-letters", message.key, message.value or b"", message.headers)
    producer.close()
    letters = read_letters(kafka, name)
    assert replay(kafka, name, letters) == 1
    reader = Reader(kafka, [f"{name}.events"])
    [back] = reader.read_to_end()
    reader.close()
    assert (back.key, back.value) == (b"d0", b"junk")
    assert back.headers == [("schema", b"events/1"), ("device", b"d0"), ("again", b"0")]
