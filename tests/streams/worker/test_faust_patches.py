"""How Faust's consumer and aiokafka's wait."""

import asyncio
import time

import pytest
from aiokafka.consumer.fetcher import Fetcher

from streams.worker import faust_patches
from streams.worker.faust_patches import EMPTY_S, FULL_S, patch_aiokafka, patch_consumer


class Polled:
    """What `patch_consumer` reads of a consumer of Faust's, and how it was asked."""

    def __init__(self, full: set[int], active: set[int], flow: bool = True) -> None:
        self._buffered_partitions, self._active, self.flow_active = full, active, flow
        self.asked: list[float] = []

    def _get_active_partitions(self) -> set[int]:
        return self._active

    async def _wait_next_records(self, timeout_s: float) -> tuple[dict[int, str], set[int]]:
        self.asked.append(timeout_s)
        return {1: "records"}, self._active

    async def verify_all_partitions_active(self) -> None:
        raise AssertionError("a position is not known yet")


@pytest.mark.parametrize(
    ("consumer", "asked"),
    [
        (Polled(full=set(), active={1, 2}), [1.0]),
        (Polled(full={2}, active={1}), [FULL_S]),
        (Polled(full={1, 2}, active=set(), flow=False), [FULL_S]),
    ],
)
def test_records_are_waited_for_briefly_while_a_queue_is_full(
    consumer: Polled, asked: list[float]
) -> None:
    patch_consumer(consumer)
    assert asyncio.run(consumer._wait_next_records(1.0)) == ({1: "records"}, consumer._active)
    assert consumer.asked == asked
    asyncio.run(consumer.verify_all_partitions_active())


def test_where_all_queues_are_full_nothing_is_asked_for() -> None:
    consumer = Polled(full={1, 2}, active=set())
    patch_consumer(consumer)
    assert asyncio.run(consumer._wait_next_records(1.0)) == ({}, set())
    assert consumer.asked == []


@pytest.mark.parametrize(("after_s", "answer", "pauses"), [
    (0.0, False, True), (0.0, True, False), (EMPTY_S, False, False),
])  # fmt: skip
def test_a_broker_that_holds_no_fetch_is_not_asked_again_at_once(
    after_s: float, answer: bool, pauses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetch(*_: object) -> bool:
        await asyncio.sleep(after_s)
        return answer

    monkeypatch.setattr(faust_patches, "_fetch", fetch)
    patch_aiokafka()
    began = time.monotonic()
    assert asyncio.run(Fetcher._proc_fetch_request(None)) is answer
    assert (time.monotonic() - began >= after_s + EMPTY_S) is pauses


@pytest.mark.parametrize("waits_s", [0.0, 60.0])
def test_a_fetch_that_is_cancelled_while_it_waits_ends_without_an_error(
    waits_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In aiokafka, and in what we wait after an empty answer: a worker ends at once."""

    async def fetch(*_: object) -> bool:
        await asyncio.sleep(waits_s)
        return False

    async def cancelled() -> bool:
        waiting = asyncio.create_task(Fetcher._proc_fetch_request(None))
        for _ in range(5):  # until it has come to where it waits
            await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        return await waiting

    monkeypatch.setattr(faust_patches, "_fetch", fetch)
    patch_aiokafka()
    assert asyncio.run(cancelled()) is False
