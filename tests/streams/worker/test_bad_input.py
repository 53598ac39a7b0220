"""Whatever comes on `events` is named and parked, or counted; the next message is served."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.contract.errors import MalformedRecord
from streams.contract.events.messages import Headers
from streams.contract.events.records import (
    AGAIN,
    decode_event_message,
    encode_events,
    encode_stream,
)
from streams.contract.task import Task
from streams.kafka.admin import GroupPosition
from streams.kafka.settings import BrokerSettings
from streams.runtime.process import Repeats
from streams.worker.store.delta_store import DROPS, SCORES
from streams.worker.windows.tumbling import FUTURE_S
from tests.rig.made_up.tiny_task import task as recorded
from tests.rig.processes.workers import Fleet, batch, fleet, json_events, stop, until
from tests.streams.kafka.test_poison import BAD_NAME
from tests.streams.kafka.test_poison import send as send_raw
from tests.streams.worker.model import LATER, Log, MemoryStore, committer, live

task = replace(recorded, source="live")  # whose event times are held against the clock
LATER_S = FUTURE_S + 1  # the model's clock stands at 0
RawMessage = tuple[bytes | None, bytes | None, Headers]


def good(first: int = 0, times_s: tuple[float, ...] = (1, 2, 3), device: str = "d0") -> RawMessage:
    return encode_stream(batch(device, first, list(times_s)))


def with_header(message: RawMessage, name: str, value: bytes | None) -> RawMessage:
    key, body, headers = message
    kept = [(n, v) for n, v in headers if n != name]
    return key, body, kept if value is None else [*kept, (name, value)]


def body(message: RawMessage, value: bytes | None) -> RawMessage:
    return message[0], value, message[2]


ARROW, COMPACT = good(), encode_events(batch("d0", 0, [1, 2, 3]))
BAD: dict[str, tuple[RawMessage, str]] = {  # tests/streams/contract/test_records.py has all
    "random bytes": (body(ARROW, random.Random(0).randbytes(400)), "not-arrow"),
    "no value": (body(ARROW, None), "not-arrow"),
    "no key": ((None, *ARROW[1:]), "wrong-key"),
    "no headers": ((*ARROW[:2], []), "not-json"),
    "JSON of something else": ((b"d0", b'{"time_us": 1, "values": [1, 2]}', []), "wrong-schema"),
    "JSON as Arrow": (body(ARROW, b"{}"), "not-arrow"),
    "a header that is no UTF-8": (with_header(ARROW, "epoch", b"\xff"), "bad-header"),
    "a time before 1970": (good(0, (-1.0, 1, 2)), "bad-time"),
    "few bytes cut short": (body(COMPACT, COMPACT[1][:-1]), "bad-body"),
    "columns of another task": (with_header(COMPACT, "e2", b"AAAAAA"), "wrong-schema"),
}


def served(log: Log, store: MemoryStore, task: Task = task) -> None:
    live(log, store, LATER, LATER, of=task)


@pytest.mark.parametrize("name", BAD)
def test_it_is_parked_with_its_reason_and_the_next_message_is_served(name: str) -> None:
    (bad, reason), log, store = BAD[name], Log(), MemoryStore()
    log.messages += [bad, good(10)]
    served(log, store)
    (letter,) = [m for m in log.published if m.topic == "tiny.v1.dead-letters"]
    headers = dict(letter.headers)
    assert headers["reason"].decode() == reason
    assert headers["source-offset"] == b"0"
    assert (letter.key, letter.value) == (bad[0], bad[1] or b"")
    assert {n[9:]: v for n, v in letter.headers if n.startswith("original-")} == dict(bad[2])
    assert sorted(store.tables[SCORES].column("seq").to_pylist()) == [10, 11, 12]
    assert log.committed == 2


def test_events_of_one_time_are_scored_each_in_its_order() -> None:
    log, store = Log(), MemoryStore()
    log.append(batch("d0", 0, [1, 1, 1, 2]))
    log.append(batch("d0", 4, [2, 2, 2, 3]))
    served(log, store)
    assert store.tables[SCORES].column("seq").to_pylist() == list(range(8))


def test_a_device_whose_clock_is_wrong_gets_a_line_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, store = Log(), MemoryStore()
    for seq in range(0, 60, 3):
        log.messages.append(good(seq, (LATER_S + seq, 1, 2)))
        served(log, store)
    records = [r for r in caplog.records if "from-the-future" in r.getMessage()]
    assert len(records) > 1
    assert sum(map(Repeats().filter, records)) == 1


def test_event_times_in_another_unit_are_said_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, store, now_s = Log(), MemoryStore(), 1.78e9
    log.messages += [good(0, (now_s,)), good(0, (now_s / 1e6,), "d1"), good(0, (1, 2), "d2")]
    served(log, store, recorded)
    log.messages.append(good(1, (2000,), "d1"))
    served(log, store, recorded)
    found = [r for r in caplog.records if "before 1980" in r.getMessage()]
    assert "before 1980 of d1 (devices: 2): times are micro" in found[0].getMessage()
    assert len(found) == 2
    assert sum(map(Repeats().filter, found)) == 1


def test_events_from_the_future_are_parked_counted_and_taken_when_they_are_sent_again() -> None:
    log, store = Log(), MemoryStore()
    log.messages.append(good(0, (1, LATER_S, 2)))
    log.messages.append(good(3, (3, 4)))
    served(log, store)
    assert sorted(store.tables[SCORES].column("seq").to_pylist()) == [0, 2, 3, 4]
    (drop,) = store.tables[DROPS].to_pylist()
    assert (drop["first"], drop["last"], drop["reason"]) == (1, 1, "from-the-future")
    (letter,) = [m for m in log.published if m.topic == "tiny.v1.dead-letters"]
    revisions = [m for m in log.published if m.topic == "tiny.v1.windows"]
    assert len(revisions) == 1  # the watermark has not followed: no row was late

    assert b" UTC is over an hour ahead of the worker's clock" in dict(letter.headers)["detail"]
    original = [(n[9:], v) for n, v in letter.headers if n.startswith("original-")]
    log.messages.append((letter.key, letter.value, original))  # by itself: passed over
    log.messages.append((letter.key, letter.value, [*original, (AGAIN, b"1")]))

    async def a_day_later() -> None:
        made = committer(task, log, store, now_us=86_400_000_000)
        await made.assign(GroupPosition(0, 0, 0, None))
        for offset in range(log.committed, len(log.messages)):
            made.receive(log.incoming(offset), offset, 0.0)
            await made.flush(LATER)
            again = offset == len(log.messages) - 1
            assert (1 in store.tables[SCORES].column("seq").to_pylist()) == again

    asyncio.run(a_day_later())
    assert store.tables[DROPS].num_rows == 1
    assert log.committed == 4


def test_events_that_are_sent_again_keep_their_producers_names() -> None:
    log, store = Log(), MemoryStore()
    first, named = json_events(batch("d0", 0, [1, LATER_S]))
    text = json.dumps([first, {**named, "event_id": "order-7"}]).encode()
    log.messages.append((b"d0", text, []))
    served(log, store)
    (letter,) = [m for m in log.published if m.topic == "tiny.v1.dead-letters"]
    again = [*original(letter.headers).items(), (AGAIN, b"0")]
    log.messages.append((letter.key, letter.value, again))

    async def a_day_later() -> None:
        made = committer(task, log, store, now_us=86_400_000_000)
        await made.assign(GroupPosition(0, 0, 0, None))
        made.receive(log.incoming(1), 1, 0.0)
        await made.flush(LATER)

    asyncio.run(a_day_later())
    assert store.tables[SCORES].column("event_id").to_pylist() == [None, "order-7"]


def test_a_producer_that_begins_anew_in_its_old_epoch_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, store = Log(), MemoryStore()
    log.messages += [good(0, (1, 2, 3)), good(3, (4, 5, LATER_S))]
    served(log, store)
    log.committed = 0  # a worker that reads again what was sent says nothing
    served(log, store)
    assert [dict(m.headers)["reason"] for m in log.published if "dead" in m.topic] == [
        b"from-the-future"
    ]
    caplog.clear()
    log.messages += [good(0, (8, 9, 10)), good(3, (11, 12, 13, 14)), good(7, (15,))]
    served(log, store)
    assert store.tables[SCORES].column("seq").to_pylist() == [0, 1, 2, 3, 4, 6, 7]
    assert store.tables[DROPS].num_rows == 1  # that from the future: numbers are counted once
    letters = [m for m in log.published if "dead" in m.topic][1:]
    assert [dict(m.headers)["reason"] for m in letters] == [b"seq-reused"] * 2
    kept = [decode_event_message(task, m.key, m.value, original(m.headers)) for m in letters]
    assert [(e.first, e.last) for e in kept] == [(0, 2), (3, 4)]
    records = [r for r in caplog.records if "seq-reused: events of d0" in r.getMessage()]
    assert "begin a new epoch" in records[0].getMessage()
    assert sum(map(Repeats().filter, records)) == 1


def original(headers: Headers) -> dict[str, bytes]:
    return {n.removeprefix("original-"): v for n, v in headers if n.startswith("original-") and v}


def test_what_is_refused_again_says_of_which_letter_it_is_the_copy() -> None:
    log, store = Log(), MemoryStore()
    log.messages.append(good(0, (1, LATER_S, 2)))
    served(log, store)
    for offset in (b"0", b"1"):
        letter = [m for m in log.published if m.topic == "tiny.v1.dead-letters"][-1]
        headers = [(n[9:], v) for n, v in letter.headers if n.startswith("original-")]
        kept = [header for header in headers if header[0] != AGAIN]
        log.messages.append((letter.key, letter.value, [*kept, (AGAIN, offset)]))
        served(log, store)
        again = [m for m in log.published if m.topic == "tiny.v1.dead-letters"][-1]
        assert again is not letter
        assert dict(again.headers)["original-again"] == offset
        assert (again.key, again.value) == (letter.key, letter.value)


def test_a_letter_in_json_or_with_many_headers_says_so_too() -> None:
    """Events of JSON that could not be read before, and are refused now; and a message whose
    headers are more than a letter keeps."""
    log, store = Log(), MemoryStore()
    key, text = b"d0", json.dumps(json_events(batch("d0", 0, [1, LATER_S]))[1]).encode()
    many = [(f"h{n}", b"") for n in range(40)]
    log.messages += [(key, text, [(AGAIN, b"7")]), (key, b"{", [*many, (AGAIN, b"8")])]
    served(log, store)
    letters = [dict(m.headers) for m in log.published if m.topic == "tiny.v1.dead-letters"]
    assert {h["reason"]: h["original-again"] for h in letters} == {
        b"from-the-future": b"7", b"not-json": b"8",
    }  # fmt: skip


sound = st.builds(
    lambda device, first, n, at: good(first, tuple(at + 0.7 * i for i in range(n)), device),
    st.sampled_from(["d0", "d1"]),
    st.integers(0, 30),
    st.integers(1, 8),
    st.sampled_from([0.0, 7.0, 33.0, LATER_S]),
)
unsound = st.sampled_from([message for message, _ in BAD.values()])
names = st.sampled_from(["schema", "device", "epoch", "first", "last", "reason"]) | st.text()
texts = st.binary(max_size=20) | st.sampled_from([b"drops/1", b"labels/1"]) | st.none()
noise = st.tuples(
    st.none() | st.binary(max_size=20) | st.just(b"d0"),
    st.none() | st.binary(max_size=200),
    st.lists(st.tuples(names, texts), max_size=8),
)
mutated = st.builds(
    lambda message, at, byte: body(message, message[1][:at] + bytes([byte]) + message[1][at + 1 :]),
    sound,
    st.integers(0, 1500),
    st.integers(0, 255),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.one_of(sound, unsound, mutated, noise), min_size=1, max_size=15))
def test_the_store_is_what_a_model_of_a_mixed_stream_says(stream: list[RawMessage]) -> None:
    """The first sound copy of a seq counts; a first copy from the future is refused for good. What
    is later than all before it cannot be a copy."""
    log, store = Log(), MemoryStore()
    log.messages += stream
    served(log, store)
    scored: set[tuple[str, str, int]] = set()
    refused: set[tuple[str, str, int]] = set()
    reused, latest, malformed = Counter[tuple[str, str, int]](), dict[str, int](), 0
    for message in stream:
        try:
            record = decode_event_message(task, *message)
        except MalformedRecord:
            malformed += 1
            continue
        rows = record.rows.to_pydict()  # type: ignore[union-attr]
        times = np.array(record.rows.column("time").cast("int64"))  # type: ignore[union-attr]
        after_us = latest.get(record.device, -1)
        for seq, time_us in zip(rows["seq"], times, strict=True):
            name, future = (record.device, record.epoch, seq), time_us > FUTURE_S * 1e6
            reused[name] += name in scored and time_us > after_us and not future
            if name not in scored | refused:
                (refused if future else scored).add(name)
                if not future:
                    latest[record.device] = max(latest.get(record.device, -1), time_us)
    rows = store.tables[SCORES].select(["device", "epoch", "seq"]).to_pylist()
    assert Counter((r["device"], r["epoch"], r["seq"]) for r in rows) == Counter(scored)
    dropped = [
        (r["device"], r["epoch"], seq)
        for r in store.tables[DROPS].to_pylist()
        for seq in range(r["first"], r["last"] + 1)
    ]
    assert Counter(dropped) == Counter(refused)
    letters = [m for m in log.published if m.topic == "tiny.v1.dead-letters"]
    reasons = Counter(dict(m.headers)["reason"] for m in letters)
    found = [
        decode_event_message(task, m.key, m.value, original(m.headers))
        for m in letters
        if dict(m.headers)["reason"] == b"seq-reused"
    ]
    names = Counter((e.device, e.epoch, n) for e in found for n in range(e.first, e.last + 1))
    assert {n: many for n, many in names.items() if n not in refused} == +reused
    assert reasons.total() - reasons[b"from-the-future"] - reasons[b"seq-reused"] == malformed
    assert log.committed == len(stream)


@pytest.mark.kafka
def test_a_header_name_that_is_no_utf_8_does_not_stop_the_worker(
    kafka: BrokerSettings, tmp_path: Path
) -> None:
    """Sound events beside it are scored, others are parked with where they were; and the next."""
    with fleet(kafka, tmp_path) as made:
        worker = made.start()
        made.ready("w0", [0, 1])
        topic = f"{made.task.id}.events"
        key, value, headers = encode_events(batch("d0", 0, [1.0] * 5, task=made.task))
        junk = (BAD_NAME, b"x")
        raw = [(name.encode(), text) for name, text in headers]
        send_raw(kafka, topic, [
            (value, [*raw, junk], {"key": key}),
            (b"garbage", [junk], {"key": key}),
        ])  # fmt: skip
        made.send(batch("d0", 5, [2.0] * 5, task=made.task))
        scored = [("d0", "e1", seq) for seq in range(10)]
        until(lambda: sorted(made.scored()) == scored, "all sound ones are scored")
        until(lambda: letters(made) == 1, "the other one is parked")
        (letter,) = made.read("dead-letters")
        about = dict(letter.headers)
        assert about["source-topic"] == topic.encode()
        assert (about["source-partition"], about["source-offset"]) == (b"0", b"1")
        assert worker.poll() is None
        assert stop(worker) == 0


def letters(made: Fleet) -> int:
    """How many messages were parked, each counted once."""
    found = made.read("dead-letters")
    sources = [{n: v for n, v in m.headers if n.startswith("source")} for m in found]
    return len({(s["source-partition"], s["source-offset"]) for s in sources})


def test_a_recordings_times_are_not_held_against_the_clock() -> None:
    log, store = Log(), MemoryStore()
    log.messages.append(good(0, (1, 1000 * LATER_S, 1000 * LATER_S + 1)))
    served(log, store, recorded)
    assert sorted(store.tables[SCORES].column("seq").to_pylist()) == [0, 1, 2]
    assert store.tables[DROPS].num_rows == 0
