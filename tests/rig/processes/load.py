"""A fleet's uplinks under test: batches at a steady rate, some of them repeated, late or dropped.

Each device sends batches of consecutive seqs that are ROWS * STEP_S of event time long. By chance,
from the seed alone,

    a batch is declared dropped and not sent
    a batch is kept back for the next few, which overtake it: its windows may be closed by then
    an earlier batch, or an earlier declaration, is sent again
    the device begins another epoch, whose seqs start at 0

Everything that was made is sent at least once, through outages of the broker too: `finish` waits
until the broker has acknowledged all of it.
"""

import random
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from streams.contract.errors import BrokerUnavailable
from streams.contract.events.messages import Drop, encode_drop
from streams.contract.events.records import EventBatch, encode_events
from streams.contract.task import Task
from streams.contract.topics import EVENTS, topic_name
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings
from tests.rig.processes.workers import batch, until

ROWS, STEP_S = 12, 0.5  # a batch is longer than a window of the tiny task
TURN_S = 0.25  # in which each device makes one batch
DROPPED, KEPT_BACK, REPEATED, NEW_EPOCH = 0.04, 0.1, 0.15, 0.03  # of all batches
OVERTAKEN = 4  # at most, by so many batches
REMEMBERED = 30  # records of a device that may be sent again

Record = EventBatch | Drop
Source = tuple[str, str]  # (device, epoch)


@dataclass
class Device:
    """What one device will send next."""

    name: str
    life: int = 1
    first: int = 0
    time_s: float = 0.0
    kept_back: list[tuple[int, Record]] = field(default_factory=list)  # with turns to wait
    past: deque[Record] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    @property
    def epoch(self) -> str:
        return f"e{self.life}"


class Load(threading.Thread):
    """Sends until `finish`. `sent` and `dropped` hold the seqs by (device, epoch)."""

    def __init__(
        self, broker: BrokerSettings, task: Task, devices: Sequence[str], seed: int
    ) -> None:
        super().__init__(name="load", daemon=True)
        self.batches = 0
        self.sent: dict[Source, set[int]] = {}
        self.dropped: dict[Source, set[int]] = {}
        self._task = task
        self._topic = topic_name(task.id, EVENTS)
        self._devices = [Device(name) for name in devices]
        self._chance = random.Random(seed)
        self._producer = Producer(broker)
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._on_the_way = 0
        self._refused: list[Record] = []

    def run(self) -> None:
        while not self._ending.wait(TURN_S):
            for device in self._devices:
                for record in self._turn(device):
                    self._send(record)
            self._send_refused()
        for device in self._devices:
            for _, record in device.kept_back:
                self._send(record)

    def _turn(self, device: Device) -> list[Record]:
        """The records that the device sends in one turn, in this order."""
        roll = self._chance.random
        if roll() < NEW_EPOCH:
            device.life, device.first = device.life + 1, 0
        record = self._make(device, dropped=roll() < DROPPED)
        found: list[Record] = []
        if roll() < KEPT_BACK:
            device.kept_back.append((self._chance.randint(1, OVERTAKEN), record))
        else:
            found.append(record)
        found += [record for turns, record in device.kept_back if turns == 0]
        device.kept_back = [(turns - 1, r) for turns, r in device.kept_back if turns > 0]
        if device.past and roll() < REPEATED:
            found.append(self._chance.choice(device.past))
        device.past += found
        return found

    def _make(self, device: Device, dropped: bool) -> Record:
        first, last = device.first, device.first + ROWS - 1
        times = [device.time_s + STEP_S * i for i in range(ROWS)]
        device.first, device.time_s = last + 1, device.time_s + STEP_S * ROWS
        kind = self.dropped if dropped else self.sent
        kind.setdefault((device.name, device.epoch), set()).update(range(first, last + 1))
        self.batches += 1
        if dropped:
            return Drop(device.name, device.epoch, first, last, "full")
        return batch(device.name, first, times, task=self._task, epoch=device.epoch)

    def _send(self, record: Record) -> None:
        encode = encode_drop(record) if isinstance(record, Drop) else encode_events(record)
        key, value, headers = encode

        def done(error: Exception | None) -> None:
            with self._lock:
                self._on_the_way -= 1
                if error is not None:
                    self._refused.append(record)

        with self._lock:
            self._on_the_way += 1
        try:
            self._producer.send(self._topic, key, value, headers, done)
        except BrokerUnavailable as exc:
            done(exc)

    def _send_refused(self) -> None:
        with self._lock:
            again, self._refused = self._refused, []
        for record in again:
            self._send(record)

    def _all_acknowledged(self) -> bool:
        self._send_refused()
        with self._lock:
            return not self._on_the_way and not self._refused

    def finish(self) -> None:
        """Make no more, and wait until the broker has all that was made."""
        self._ending.set()
        self.join(30)
        assert not self.is_alive(), "the load does not end"
        until(self._all_acknowledged, "the broker has acknowledged all that was sent")

    def close(self) -> None:
        self._ending.set()
        self.join(30)
        self._producer.close()
