"""A callback that need not wait makes no task; one that waits goes on as with mode's own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from mode import Service

from streams.worker.waiting import FULL_S, brief, eager


class Waiter(Service):
    """A service, for its `wait_first`."""


def run(body: Callable[[Callable[..., Awaitable[Any]], list[str]], Awaitable[None]]) -> list[str]:
    async def main() -> list[str]:
        waiter, said = Waiter(), list[str]()
        await body(eager(waiter.wait_first), said)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1, "no task is left behind"
        return said

    return asyncio.run(main())


def test_a_callback_that_does_not_wait_runs_without_tasks() -> None:
    async def body(wait: Callable[..., Awaitable[Any]], said: list[str]) -> None:
        async def callback() -> None:
            said.append(f"{len(asyncio.all_tasks())} task")

        await wait(callback(), asyncio.Event().wait())

    assert run(body) == ["1 task"]


def test_a_callback_that_waits_is_finished() -> None:
    async def body(wait: Callable[..., Awaitable[Any]], said: list[str]) -> None:
        room = asyncio.Event()

        async def callback() -> str:
            await asyncio.sleep(0)
            said.append("began")
            await room.wait()
            with pytest.raises(ValueError, match="gone"):
                await failing()
            said.append("ended")
            return "result"

        async def failing() -> None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.set_exception, ValueError("gone"))
            await future

        asyncio.get_running_loop().call_later(0.01, room.set)
        found = await wait(callback(), asyncio.Event().wait())
        assert found.results == ["result"]

    assert run(body) == ["began", "ended"]


def test_a_callback_that_waits_for_ever_is_cancelled_by_the_other() -> None:
    async def body(wait: Callable[..., Awaitable[Any]], said: list[str]) -> None:
        suspended = asyncio.Event()

        async def callback() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                said.append("cancelled")
                raise

        asyncio.get_running_loop().call_later(0.01, suspended.set)
        await wait(callback(), suspended.wait())

    assert run(body) == ["cancelled"]


@pytest.mark.parametrize("waits", [False, True])
def test_a_callback_that_fails_says_so(waits: bool) -> None:
    async def body(wait: Callable[..., Awaitable[Any]], said: list[str]) -> None:
        async def callback() -> None:
            if waits:
                await asyncio.sleep(0.01)
            raise ValueError("broken")

        with pytest.raises(ValueError, match="broken"):
            await wait(callback(), asyncio.Event().wait())
        said.append("raised")

    assert run(body) == ["raised"]


def test_anything_else_is_left_to_the_service() -> None:
    async def body(wait: Callable[..., Awaitable[Any]], said: list[str]) -> None:
        found = await wait(asyncio.sleep(0, "slept"), timeout=1.0)
        said.append(found.results[0])

    assert run(body) == ["slept"]


class Polled:
    """What `brief` reads of a consumer of Faust's, and how it was asked."""

    def __init__(self, full: set[int], active: set[int], flow: bool = True) -> None:
        self._buffered_partitions, self._active, self.flow_active = full, active, flow
        self.asked: list[float] = []

    def _get_active_partitions(self) -> set[int]:
        return self._active

    async def _wait_next_records(self, timeout_s: float) -> tuple[dict[int, str], set[int]]:
        self.asked.append(timeout_s)
        return {1: "records"}, self._active


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
    assert asyncio.run(brief(consumer)(1.0)) == ({1: "records"}, consumer._active)
    assert consumer.asked == asked


def test_where_all_queues_are_full_nothing_is_asked_for() -> None:
    consumer = Polled(full={1, 2}, active=set())
    assert asyncio.run(brief(consumer)(1.0)) == ({}, set())
    assert consumer.asked == []
