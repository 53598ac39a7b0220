"""What a process of the benchmark is told, as JSON on its command line."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from streams.contract.task import Task, load_task
from streams.contract.topics import EVENTS, topic_name

ORIGIN_US = 1_767_571_200_000_000  # 2026-01-05: a midnight, so that few days are in the store
GOLDEN = 0.6180339887498949  # spreads the devices' phases evenly, however many there are


@dataclass(frozen=True)
class Plan:
    """A backlog of `rounds` messages from each device, `per_message` rows each.

    Event times are `hop_us` apart. Each device's last row lies so far behind the one before that it
    closes that one's window; it is itself in a window that nothing closes. So all rows but one a
    device can be done without waiting for silence.
    """

    task: str
    bootstrap: str
    folder: str
    devices: int
    rounds: int
    per_message: int
    hop_us: int
    phase: float | None = None  # of all devices, in hops; None spreads them over a window
    single: bool = False  # Kafka-ML's way: a message holds one segment, raw
    partitions: int = 4

    @classmethod
    def from_argv(cls) -> Self:
        return cls(**json.loads(sys.argv[1]))

    def argument(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def load_task(self) -> Task:
        return load_task(self.task)

    @property
    def topic(self) -> str:
        name = topic_name(self.load_task().name, EVENTS)
        return f"{name}-single" if self.single else name

    @property
    def messages(self) -> int:
        return self.devices * self.rounds

    @property
    def rows(self) -> int:
        """On the topic."""
        return self.messages * self.per_message

    @property
    def closed_rows(self) -> int:
        """In windows that close by event time."""
        return self.rows - self.devices

    def device(self, number: int) -> str:
        return f"device-{number:05d}"

    def times_us(self, number: int, round_: int) -> np.ndarray:
        """The event times of one message, (per_message,) int64."""
        task = self.load_task()
        hops = np.arange(self.per_message) + round_ * self.per_message
        phase = self.phase * self.hop_us if self.phase is not None else 0.0
        if self.phase is None:
            phase = (number * GOLDEN) % 1 * task.window_us
        times = ORIGIN_US + round(phase) + hops * self.hop_us
        if round_ == self.rounds - 1:
            end = task.window_start(int(times[-1]) - self.hop_us) + task.window_us
            times[-1] = end + round(task.lateness_s * 1e6) + self.hop_us
        return np.asarray(times, np.int64)

    def windows(self) -> int:
        """How many windows close by event time."""
        task = self.load_task()
        found = 0
        for number in range(self.devices):
            times = np.concatenate([self.times_us(number, r) for r in range(self.rounds)])
            found += len(np.unique(times // task.window_us)) - 1
        return found

    @property
    def run_folder(self) -> Path:
        return Path(self.folder)
