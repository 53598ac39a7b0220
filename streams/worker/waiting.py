"""How Faust's consumer waits: twice for less, and once for more.

It hands over each message by `wait_first(callback(message), suspend_flow.wait())`,
which makes four tasks and lets the event loop turn three times, though the callback mostly only
puts the message into a queue that has room. Here the callback runs at once, up to where it waits;
only then Faust's own way goes on with it. Faust itself lets the loop turn every 100 messages.

It asks only for partitions whose queue has room. While the others' queues are worked off, in
milliseconds, it waits a second for messages of those, or a second for nothing where none has room:
up to half of the time of a worker with a backlog. Here it waits briefly while a queue is full.

It asks for the next messages as soon as there is one, and a fetch costs a millisecond whatever it
brings. Here the broker waits GATHER_MS for GATHER_BYTES; and as the embedded broker waits for
nothing, aiokafka itself pauses after an empty answer that came at once.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from inspect import iscoroutine
from typing import Any

WaitFirst = Callable[..., Awaitable[Any]]


def eager(wait_first: WaitFirst) -> WaitFirst:
    """Return `wait_first` without tasks for two coroutines of which the first does not wait; the
    result is then None, which Faust's consumer does not look at."""

    async def wait(*given: Any, **options: Any) -> Any:
        if options or len(given) != 2 or not all(map(iscoroutine, given)):
            return await wait_first(*given, **options)
        first, second = given
        try:
            waits_for = first.send(None)
        except BaseException as exc:
            second.close()  # it has not begun
            if isinstance(exc, StopIteration):
                return None
            raise
        return await wait_first(_go_on(first, waits_for), second)

    return wait


async def _go_on(coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> Any:
    return await _Rest(coroutine, waits_for)


class _Rest:
    """The rest of a coroutine that has begun and waits for a future."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> None:
        self._coroutine, self._waits_for = coroutine, waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        waits_for = self._waits_for
        try:
            while True:
                try:
                    value = yield waits_for
                except BaseException as exc:  # it is cancelled, or what it waits for has failed
                    waits_for = self._coroutine.throw(exc)
                else:
                    waits_for = self._coroutine.send(value)
        except StopIteration as done:
            return done.value


GATHER_MS, GATHER_BYTES = 250, 65_536


def gather(consumer: Any) -> None:
    """Let the broker gather messages for a consumer that has started."""
    fetcher = consumer._thread._consumer._fetcher
    fetcher._fetch_min_bytes, fetcher._fetch_max_wait_ms = GATHER_BYTES, GATHER_MS
    usual = fetcher._proc_fetch_request

    async def fetch(*given: Any) -> Any:
        began = time.monotonic()
        found = await usual(*given)
        if not found and time.monotonic() - began < GATHER_MS / 5000:
            await asyncio.sleep(GATHER_MS / 2000)
        return found

    fetcher._proc_fetch_request = fetch


NextRecords = Callable[[float], Awaitable[Any]]

FULL_S = 0.02  # between two looks while the queue of a partition is full


def brief(consumer: Any) -> NextRecords:
    """Return a consumer's `_wait_next_records` that waits FULL_S at most while a queue is full."""
    usual: NextRecords = consumer._wait_next_records

    async def wait(timeout_s: float) -> Any:
        if not consumer._buffered_partitions:
            return await usual(timeout_s)
        if consumer.flow_active and not consumer._get_active_partitions():
            await asyncio.sleep(FULL_S)
            return {}, set()
        return await usual(min(timeout_s, FULL_S))

    return wait
