"""A callback that need not wait makes no task; one that waits goes on as with mode's own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from mode import Service

from streams.worker.waiting import eager


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
