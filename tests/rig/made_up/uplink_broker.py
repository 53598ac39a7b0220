"""A broker in memory for the uplink's tests, and a clock that stands."""

from collections.abc import Callable

from streams.contract.accounting import IntervalSet
from streams.contract.documents import DeviceState
from streams.contract.errors import BrokerUnavailable, MessageRefused
from streams.contract.events.messages import Drop, Headers
from streams.contract.events.records import EventBatch, decode_event_message
from tests.rig.made_up.tiny_task import task

Done = Callable[[Exception | None], None]


class FakeBroker:
    """Holds what was sent until it is told to acknowledge it; implements Sender."""

    def __init__(self) -> None:
        self.waiting: list[tuple[tuple[bytes, bytes, Headers], Done]] = []
        self.taken: list[EventBatch | Drop] = []
        self.states: list[DeviceState] = []
        self.sizes: list[int] = []
        self.closed = 0
        self.down = False
        self.forgets = False  # to acknowledge states

    def send(self, topic: str, key: bytes, value: bytes, headers: Headers, done: Done) -> None:
        if self.down:
            raise BrokerUnavailable("no broker")
        headers_size = sum(len(name) + len(text) for name, text in headers)
        self.sizes.append(len(key) + len(value) + headers_size)
        if topic.endswith(".fleet"):
            self.states.append(DeviceState.decode(value))
            if not self.forgets:
                done(None)
            return
        self.waiting.append(((key, value, headers), done))

    def acknowledge(self, count: int | None = None) -> None:
        ready = self.waiting[:count]
        self.waiting = self.waiting[len(ready) :]
        for (key, value, headers), done in ready:
            self.taken.append(decode_event_message(task, key, value, headers))
            done(None)

    def refuse(self, count: int) -> None:
        """Answer the oldest with an error that waiting does not mend."""
        refused, self.waiting = self.waiting[:count], self.waiting[count:]
        for _, done in refused:
            done(ValueError("too large"))

    def refuse_larger(self, most: int) -> None:
        """Answer all that waits as a broker with a limit does, in bytes of the value."""
        waiting, self.waiting = self.waiting, []
        for message, done in waiting:
            if len(message[1]) > most:
                done(MessageRefused("too-large", f"{len(message[1])} bytes"))
            else:
                self.waiting.append((message, done))
                self.acknowledge(1)

    def close(self, timeout_s: float) -> None:
        self.closed += 1

    @property
    def seqs(self) -> IntervalSet:
        return IntervalSet((batch.first, batch.last) for batch in self.taken)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now
