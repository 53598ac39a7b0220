"""The spans of a commit: right parents, the same ids after a crash, and nothing changes beside
them."""

import asyncio
from collections.abc import Sequence

import pytest

from streams.contract.events.records import EventBatch
from streams.contract.events.traceparent import (
    TRACEPARENT,
    TraceParent,
    event_trace,
    span_id,
    traceparent_of,
)
from streams.runtime.tracing import Tracing
from streams.worker.commit.commit_spans import LINKS, CommitSpans
from streams.worker.commit.publications import Outgoing
from tests.fakes.recorded_spans import RecordedSpans, recording
from tests.fakes.tiny_task import task
from tests.streams.worker.model import Crash, Log, MemoryStore, committer
from tests.streams.worker.support import SECOND, batch

LATER = 1e9
STEPS = [f"worker-step-{n}" for n in range(1, 6)]


def device_span(events: EventBatch, *, sampled: bool = True) -> TraceParent:
    trace = event_trace(task.name, events.device, events.epoch, events.first)
    return TraceParent(trace, span_id(trace, "device.deliver", events.last), sampled)


def send(log: Log, events: EventBatch, header: bytes | None = None) -> TraceParent:
    """Append a message with its device's header, or with another one."""
    log.append(events)
    at = device_span(events)
    key, value, headers = log.messages[-1]
    log.messages[-1] = key, value, [*headers, (TRACEPARENT, header or at.header[1])]
    return at


def live(
    log: Log, store: MemoryStore, tracing: Tracing | None, crash_at: str = "", now_s: float = LATER
) -> None:
    """A worker's life: what was not committed comes again, then one flush."""

    async def run() -> None:
        spans = CommitSpans(tracing)
        made = committer(task, log, store, crash_at=crash_at, spans=spans)  # type: ignore[arg-type]
        await made.assign(0)
        for offset in range(log.committed, len(log.messages)):
            made.receive(log.incoming(offset), offset, 0.0)
        await made.flush(now_s)

    asyncio.run(run())


def published(log: Log, topic: str) -> list[TraceParent | None]:
    return [traceparent_of(m.headers) for m in log.published if m.topic == f"tiny.{topic}"]


def ids(recorded: RecordedSpans, name: str) -> list[TraceParent]:
    return [span.at for span in recorded.named(name)]


def test_a_message_is_followed_from_the_device_to_the_topics() -> None:
    log, (recorded, tracing) = Log(), recording()
    events = batch("d0", 7, [1, 2, 6])  # of two windows
    at = send(log, events)
    live(log, MemoryStore(), tracing)
    for name in ("worker.score", "worker.store"):
        first, second = recorded.named(name)
        assert [span.parent for span in (first, second)] == [at, at]
        assert first.at == at.child(name, 0, 7)
        assert second.at == at.child(name, 5 * SECOND, 9)
        assert first.attributes.items() >= {
            "tidewheel.device": "d0", "tidewheel.epoch": "e1", "tidewheel.first": 7,
            "tidewheel.last": 8, "tidewheel.window": 0, "tidewheel.revision": 0,
            "tidewheel.partition": 0, "tidewheel.offset": 0, "tidewheel.commit": 1,
        }.items()  # fmt: skip
        assert first.start_ns <= first.end_ns
    score, store = (recorded.named(f"worker.{name}")[0] for name in ("score", "store"))
    assert store.start_ns == score.end_ns
    assert published(log, "scores") == published(log, "windows") == ids(recorded, "worker.publish")
    assert [span.parent for span in recorded.named("worker.publish")] == ids(
        recorded, "worker.store"
    )
    assert {span.at.trace for span in recorded.spans} == {at.trace}


def test_a_window_of_several_messages_belongs_to_the_newest_and_links_to_the_others() -> None:
    log, (recorded, tracing) = Log(), recording()
    first = send(log, batch("d0", 0, [1]))
    log.append(batch("d0", 1, [2]))  # not sampled
    second = send(log, batch("d0", 2, [3]))
    newest = send(log, batch("d0", 3, [1.5]))
    live(log, MemoryStore(), tracing)
    (span,) = recorded.named("worker.publish")
    assert span.at.trace == newest.trace
    assert span.parent == newest.child("worker.store", 0, 3)
    assert span.links == [
        first.child("worker.store", 0, 0),
        second.child("worker.store", 0, 2),
    ]
    assert published(log, "scores") == published(log, "windows") == [span.at]


def test_the_links_of_a_span_are_bounded() -> None:
    log, (recorded, tracing) = Log(), recording()
    for first in range(LINKS + 20):
        send(log, batch("d0", first, [1 + first / 1000]))
    live(log, MemoryStore(), tracing)
    (span,) = recorded.named("worker.publish")
    assert len(span.links) == LINKS


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_each_step_gives_no_other_ids(step: str) -> None:
    undisturbed, log, store = recording(), Log(), MemoryStore()
    at = send(log, batch("d0", 0, [1, 2, 6]))
    live(log, store, undisturbed[1])
    wanted = {span.at for span in undisturbed[0].spans}

    (recorded, tracing), log, store = recording(), Log(), MemoryStore()
    send(log, batch("d0", 0, [1, 2, 6]))
    with pytest.raises(Crash):
        live(log, store, tracing, step)
    live(log, store, tracing)
    assert log.committed == 1
    found = [span.at for span in recorded.spans if span.name != "worker.skip"]
    if step == "worker-step-2":  # published by the assignment, which knows no message
        wanted -= set(ids(undisturbed[0], "worker.publish"))
    assert set(found) == wanted
    assert {span.at.trace for span in recorded.spans} == {at.trace}
    skipped = recorded.named("worker.skip")
    stored = step in ("worker-step-2", "worker-step-3", "worker-step-4")
    if step == "worker-step-1":  # scored twice
        assert len(found) == len(wanted) + 2
    assert [span.parent for span in skipped] == ([at] if stored else [])
    assert [span.attributes["tidewheel.known"] for span in skipped] == ([3] if stored else [])


def test_crashes_as_often_as_they_come_give_the_same_skipped_span() -> None:
    log, store, (recorded, tracing) = Log(), MemoryStore(), recording()
    send(log, batch("d0", 0, [1]))
    with pytest.raises(Crash):
        live(log, store, tracing, "worker-step-2")
    live(log, store, tracing, now_s=0.0)
    log.committed = 0  # as if the offset had not been committed
    live(log, store, tracing)
    first, second = ids(recorded, "worker.skip")
    assert first == second


@pytest.mark.parametrize(
    "header",
    [b"", b"garbage", b"\xff" * 55, device_span(batch("d0", 0, [1]), sampled=False).header[1]],
)
def test_a_foreign_or_unsampled_header_is_ignored_and_the_message_is_scored(header: bytes) -> None:
    log, (recorded, tracing) = Log(), recording()
    send(log, batch("d0", 0, [1]), header or b"-")
    live(log, MemoryStore(), tracing)
    assert recorded.spans == []
    assert published(log, "scores") == published(log, "windows") == [None]
    assert log.committed == 1


def without_traces(messages: Sequence[Outgoing]) -> list[tuple[object, ...]]:
    return [
        (m.topic, m.partition, m.key, m.value, [h for h in m.headers if h[0] != TRACEPARENT])
        for m in messages
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_stored_and_published_does_not_depend_on_traces(fails: bool) -> None:
    results = []
    recorded, tracing = recording()
    recorded.fails = fails
    for each in (None, tracing):
        log, store = Log(), MemoryStore()
        for first, times in ((0, [1, 2]), (2, [8, 20]), (4, [3])):
            send(log, batch("d0", first, times))
            live(log, store, each)
        assert log.committed == 3
        results.append((without_traces(log.published), store.tables))
        if each is None:
            assert all(traceparent_of(m.headers) is None for m in log.published)
    assert results[0] == results[1]
