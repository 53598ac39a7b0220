"""`python -m tests.bench.edge.pump PLAN`: events through recorder, spool and uplink, then the same
messages through a bare kafka-python producer with the same options, in one process that has the
agent's settings of the interpreter.

The clock of the first starts as the first event is handed to the recorder, and stops when the spool
knows that all are delivered. The clock of the second starts with the first message, and stops with
the last acknowledgement; its messages are ready, and as many are on the way at once. Both are
connected before. Prints {"events", "messages", "device_s", "bare_s", "bytes"}.
"""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from kafka import KafkaProducer

from edge_client.agent import SWITCH_S
from edge_client.memory import spare_memory
from edge_client.spool.queue import Spool
from edge_client.spool.writer import Event, SpoolWriter
from edge_client.uplink.uplink import IN_FLIGHT, Uplink
from streams.contract.documents import DeviceState
from streams.contract.events.messages import Headers
from streams.contract.task import Task, load_task
from streams.contract.topics import EVENTS, topic_name
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings
from streams.segments.segmentation import segments_of

DEVICE = "pump"
PENDING = 60_000_000  # bytes in the spool at most: what is sustained does not let it grow
AHEAD = 5000  # events that wait in memory at most; the recorder gives up some beyond 20,000

Message = tuple[str, bytes, bytes, Headers]


@dataclass(frozen=True)
class PumpPlan:
    """What a pump is told, as JSON on its command line."""

    task: str
    bootstrap: str
    events: int

    def argument(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_argv(cls) -> Self:
        return cls(**json.loads(sys.argv[1]))


class Kept:
    """A producer that remembers the messages on `events`."""

    def __init__(self, settings: BrokerSettings, events: str) -> None:
        self._producer, self._events = Producer(settings), events
        self.messages: list[Message] = []

    def send(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        headers: Headers,
        done: Callable[[Exception | None], None],
    ) -> None:
        if topic == self._events:
            self.messages.append((topic, key, value, headers))
        self._producer.send(topic, key, value, headers, done)

    def close(self, timeout_s: float) -> None:
        self._producer.close(timeout_s)


def made(task: Task, count: int) -> list[Event]:
    """A device's events, ready to be handed over."""
    cuts = list(segments_of(task.readings(DEVICE), task))
    hop_us = round(task.segment.hop / task.rate_hz * 1e6)
    found = []
    for number in range(count):
        _, _, segment, truth = cuts[number % len(cuts)]
        outputs = segment[:, 0].copy()  # six floats, as a model's
        label = truth if number % 10 == 0 else None
        found.append(Event(number * hop_us, "1-aaaaaaaa", outputs, label, segment))
    return found


def through_the_device(
    task: Task, settings: BrokerSettings, events: list[Event]
) -> tuple[float, list[Message]]:
    """Seconds, and the messages that were sent."""
    kept = Kept(settings, topic_name(task.name, EVENTS))
    size = 60 + (events[0].segment.nbytes if task.upload == "segment" else 0)
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder) / "spool")
        recorder = SpoolWriter(task, spool)
        state = DeviceState(
            device=DEVICE, task=task.name, time_us=0, epoch=spool.epoch, active="",
            produced=0, delivered=0, pending=0,
        )  # fmt: skip
        uplink = Uplink(task, DEVICE, spool, lambda: kept, lambda: True, lambda: state)
        recorder.start()
        uplink.start()
        while not uplink.connected:
            time.sleep(0.01)
        began = time.perf_counter()
        for number, event in enumerate(events):
            recorder.put(event)
            while recorder.waiting > AHEAD or (
                number % 1000 == 0 and spool.account().pending * size > PENDING
            ):
                time.sleep(0.001)
        while spool.account().delivered < len(events):
            if spool.account().dropped or uplink.error or recorder.error:
                raise SystemExit(f"{spool.account()}, {uplink.error}, {recorder.error}")
            time.sleep(0.002)
        seconds = time.perf_counter() - began
        recorder.stop()
        uplink.stop(1.0)
    return seconds, kept.messages


def bare(settings: BrokerSettings, messages: list[Message]) -> float:
    """Seconds of a KafkaProducer for the same messages."""
    producer = KafkaProducer(**settings.client_options(), **Producer.OPTIONS)
    producer.partitions_for(messages[0][0])
    free = threading.Semaphore(IN_FLIGHT)
    failed: list[Exception] = []
    began = time.perf_counter()
    for topic, key, value, headers in messages:
        free.acquire()
        future = producer.send(topic, value=value, key=key, headers=headers)
        future.add_callback(lambda _: free.release())
        future.add_errback(failed.append)
    producer.flush()
    seconds = time.perf_counter() - began
    producer.close()
    if failed:
        raise SystemExit(f"the broker did not take all messages: {failed[0]}")
    return seconds


def main() -> None:
    plan = PumpPlan.from_argv()
    task, settings = load_task(plan.task), BrokerSettings(bootstrap=plan.bootstrap)
    events = made(task, plan.events)
    spare_memory()
    sys.setswitchinterval(SWITCH_S)
    device_s, messages = through_the_device(task, settings, events)
    found = {
        "events": len(events),
        "messages": len(messages),
        "device_s": device_s,
        "bare_s": bare(settings, messages),
        "bytes": sum(len(value) for _, _, value, _ in messages),
    }
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
