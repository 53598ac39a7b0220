"""Plays devices: `python -m tests.bench.streams.feed.generator PLAN` preloads a topic, as their
uplinks would fill it (the same producer, zstd). Segments are normal noise from a pool of blocks."""

import itertools
import time

import numpy as np

from streams.contract.events.messages import Headers
from streams.contract.events.records import EventBatch, encode_events
from streams.contract.task import Task
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings
from tests.bench.streams.feed.plan import Plan
from tests.event_rows import event_rows

EPOCH = "1767571200000-bench0"
MODEL = "1-aaaaaaaa"
BLOCKS = 32
AHEAD = 400  # messages in flight: the library's buffer is not to fill
LABELLED = 10  # every so many rows have a true label, as a fleet is told


class Source:
    """Makes events with random outputs and segments."""

    def __init__(self, task: Task, rows: int, seed: int = 0) -> None:
        noise = np.random.default_rng(seed)
        self._task = task
        self._segments = [
            noise.normal(size=(rows, *task.segment_shape)).astype(np.float32) for _ in range(BLOCKS)
        ]
        self._outputs = [
            noise.normal(size=(rows, task.outputs)).astype(np.float32) for _ in range(BLOCKS)
        ]
        self._next = itertools.cycle(range(BLOCKS))

    def segment_bytes(self) -> bytes:
        """One segment, raw, as Kafka-ML's RAW format has it."""
        segment: np.ndarray = self._segments[next(self._next)][0]
        return segment.tobytes()

    def events(self, device: str, first: int, times: np.ndarray) -> EventBatch:
        block, n = next(self._next), len(times)
        label = np.zeros(self._task.label_size, np.float32)
        rows = event_rows(
            self._task,
            first=first,
            times=times,
            model=MODEL,
            outputs=self._outputs[block][:n],
            labels=[label if seq % LABELLED == 0 else None for seq in range(first, first + n)],
            segments=self._segments[block][:n],
        )
        return EventBatch(device, EPOCH, first, rows)


class Sender:
    """Sends without waiting for each message, and remembers when the broker had it."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = Producer(BrokerSettings(bootstrap=bootstrap))
        self.acknowledged: dict[int, float] = {}  # message number -> seconds since 1970
        self._sent = 0
        self._error: Exception | None = None

    def send(self, topic: str, key: bytes, value: bytes, headers: Headers) -> int:
        """Hand over a message; its number."""
        number, self._sent = self._sent, self._sent + 1

        def done(error: Exception | None) -> None:
            self._error = self._error or error
            self.acknowledged[number] = time.time()

        self._producer.send(topic, key, value, headers, done)
        while self._sent - len(self.acknowledged) > AHEAD:
            time.sleep(0.001)
        return number

    def finish(self, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while len(self.acknowledged) < self._sent:
            if self._error is not None or time.monotonic() > deadline:
                raise SystemExit(f"the broker did not take all messages: {self._error}")
            time.sleep(0.005)
        self._producer.close()


def main() -> None:
    plan = Plan.from_argv()
    source, sender = Source(plan.load_task(), plan.per_message), Sender(plan.bootstrap)
    topic = plan.topic
    for round_ in range(plan.rounds):
        for number in range(plan.devices):
            device = plan.device(number)
            if plan.single:
                sender.send(topic, device.encode(), source.segment_bytes(), [])
                continue
            first = round_ * plan.per_message
            batch = source.events(device, first, plan.times_us(number, round_))
            sender.send(topic, *encode_events(batch))
    sender.finish()


if __name__ == "__main__":
    main()
