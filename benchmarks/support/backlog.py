"""Backlogs of events, and made-up devices that send them.

    python -m benchmarks.support.backlog PLAN          put a backlog on its topic
    python -m benchmarks.support.backlog PLAN SPEED    send it in wall time, so many times as fast

With SPEED it prints, as JSON, [device, window, seconds since 1970] for each window that closes:
when the broker had acknowledged the message that closes it. Segments are normal noise from a pool
of blocks, as neither values nor the teacher's training matter for speed.
"""

import dataclasses
import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streams.contract.events.records import EventBatch, encode_events
from streams.contract.task import Category, Count, Session, Task, load_task
from streams.contract.topics import EVENTS, topic_name
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings
from streams.tasks import har
from tests.rig.made_up.event_rows import event_rows
from tidewheel import Segment, Tumbling

if TYPE_CHECKING:
    import torch

ORIGIN_US = 1_767_571_200_000_000  # 2026-01-05: a midnight, so that few days are in the store
GOLDEN = 0.6180339887498949  # spreads the devices' phases evenly, however many there are
BLOCKS = 32
AHEAD = 400  # messages in flight
HAR = "streams.tasks.har:task"
LINEAR = "benchmarks/support/backlog.py:linear"
SMALL = "benchmarks/support/backlog.py:small"
SESSIONS = "benchmarks/support/backlog.py:sessions"
COUNTS = "benchmarks/support/backlog.py:counts"
CATEGORIES = "benchmarks/support/backlog.py:categories"


def _teacher(shape: tuple[int, int]) -> "torch.nn.Module":
    from torch import nn

    from streams.learning.learning import PerSegment

    layer = nn.Linear(shape[0] * shape[1], har.task.outputs)
    return PerSegment(nn.Sequential(nn.Flatten(), layer))


# HAR's messages with a teacher that costs next to nothing: what is left is the worker
linear = dataclasses.replace(
    har.task, name="linear", build_teacher=lambda: _teacher(har.task.segment_shape)
)
# the same rows in other windows, of about as many; and with a channel of a thousand names
sessions = dataclasses.replace(linear, name="sessions", window=Session(2, longest_s=30))
counts = dataclasses.replace(linear, name="counts", window=Count(23, longest_s=60))
categories = dataclasses.replace(
    linear, name="categories", channels=(Category("name", size=1000), *har.task.channels[1:])
)
# small rows, for up to 100,000 devices; no window closes by silence
small = dataclasses.replace(
    har.task, name="small", channels=("x", "y"), segment=Segment(samples=20, hop=20),
    window=Tumbling(30),
    build_teacher=lambda: _teacher((2, 20)), lateness_s=0, idle_close_s=3600,
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A backlog of `rounds` messages from each device, `per_message` rows each, `hop_us` apart.

    A device's last row lies so far behind the one before that it closes that one's window; it is
    itself in a window that nothing closes. So all rows but one a device are done without waiting
    for silence.
    """

    task: str
    bootstrap: str
    folder: str  # has the teacher
    devices: int
    rounds: int
    per_message: int
    hop_us: int
    partitions: int = 4

    @classmethod
    def decode(cls, text: str) -> "Plan":
        return cls(**json.loads(text))

    def encode(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def load_task(self) -> Task:
        return load_task(self.task)

    @property
    def topic(self) -> str:
        return topic_name(self.load_task().id, EVENTS)

    @property
    def messages(self) -> int:
        return self.devices * self.rounds

    @property
    def rows(self) -> int:
        return self.messages * self.per_message

    @property
    def closed_rows(self) -> int:
        """Rows in windows that close by event time."""
        return self.rows - self.devices

    @property
    def teacher(self) -> Path:
        return Path(self.folder) / "teacher.twa"

    @property
    def key(self) -> Path:
        return Path(self.folder) / "key.pub"

    def device(self, number: int) -> str:
        return f"device-{number:05d}"

    def times_us(self, number: int, round_: int) -> np.ndarray:
        """The event times of one message, (per_message,) int64."""
        task = self.load_task()
        hops = np.arange(self.per_message) + round_ * self.per_message
        phase = (number * GOLDEN) % 1 * task.window_us
        times = ORIGIN_US + round(phase) + hops * self.hop_us
        if round_ == self.rounds - 1:
            last = int(times[-1]) - self.hop_us
            end = last - last % task.window_us + task.window_us
            end += 0 if task.aligned else task.window_us
            times[-1] = end + round(task.lateness_s * 1e6) + self.hop_us
        return np.asarray(times, np.int64)

    def windows(self) -> int:
        """How many windows close by event time."""
        task, found = self.load_task(), 0
        for number in range(self.devices):
            times = np.concatenate([self.times_us(number, r) for r in range(self.rounds)])
            found += len(np.unique(times // task.window_us)) - 1
        return found


class Source:
    """Events with random outputs and segments; one of ten has a true label."""

    def __init__(self, task: Task, rows: int) -> None:
        noise = np.random.default_rng(0)
        self._task = task
        self._blocks = itertools.cycle([
            (self._segments(noise.normal(size=(rows, *task.segment_shape)).astype(np.float32)),
             noise.normal(size=(rows, task.outputs)).astype(np.float32))
            for _ in range(BLOCKS)
        ])  # fmt: skip

    def _segments(self, segments: np.ndarray) -> np.ndarray:
        """Return segments (n, channels, samples) whose categories are indices."""
        for i, channel in enumerate(self._task.channels):
            if isinstance(channel, Category):
                segments[:, i] = np.floor(np.abs(segments[:, i]) * 100) % channel.size
        return segments

    def events(self, device: str, first: int, times: np.ndarray) -> EventBatch:
        (segments, outputs), n = next(self._blocks), len(times)
        label = np.zeros(self._task.label_size, np.float32)
        rows = event_rows(
            self._task, first=first, times=times, model="1-aaaaaaaa", outputs=outputs[:n],
            labels=[label if seq % 10 == 0 else None for seq in range(first, first + n)],
            segments=segments[:n],
        )  # fmt: skip
        return EventBatch(device, "1767571200000-bench0", first, rows)


class Sender:
    """Sends without waiting for each message, and remembers when the broker had it."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = Producer(BrokerSettings(bootstrap=bootstrap))
        self.acknowledged: dict[int, float] = {}  # message number -> seconds since 1970
        self._sent = 0
        self._error: Exception | None = None

    def send(self, topic: str, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> int:
        """Hand over a message; return its number."""
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


def preload(plan: Plan) -> None:
    source, sender = Source(plan.load_task(), plan.per_message), Sender(plan.bootstrap)
    for round_, number in itertools.product(range(plan.rounds), range(plan.devices)):
        times = plan.times_us(number, round_)
        batch = source.events(plan.device(number), round_ * plan.per_message, times)
        key, value, headers = encode_events(batch)
        sender.send(plan.topic, key, value or b"", headers)
    sender.finish()


def live(plan: Plan, speed: float) -> list[tuple[str, int, float]]:
    """Send in wall time, the devices one after the other."""
    source, sender = Source(plan.load_task(), plan.per_message), Sender(plan.bootstrap)
    period_s = plan.per_message * plan.hop_us / 1e6 / speed
    messages = []
    for round_, number in itertools.product(range(plan.rounds), range(plan.devices)):
        batch = source.events(
            plan.device(number), round_ * plan.per_message, plan.times_us(number, round_)
        )
        due_s = (round_ + number / plan.devices) * period_s
        closed = _closed_by(plan, number, round_)
        messages.append((due_s, batch.device, closed, encode_events(batch)))
    closing, began = [], time.monotonic()
    for due_s, device, starts, (key, value, headers) in messages:
        time.sleep(max(0.0, began + due_s - time.monotonic()))
        closing.append((sender.send(plan.topic, key, value or b"", headers), device, starts))
    sender.finish()
    return [(d, start, sender.acknowledged[n]) for n, d, starts in closing for start in starts]


def _closed_by(plan: Plan, number: int, round_: int) -> list[int]:
    """Return the starts of a device's windows that the message of this round closes."""
    task = plan.load_task()
    lateness_us = round(task.lateness_s * 1e6)
    span_us = 2 * task.window_us + lateness_us
    first = max(0, round_ - span_us // (plan.per_message * plan.hop_us) - 1)
    times = [plan.times_us(number, r) for r in range(first, round_ + 1)]
    starts = np.unique(np.concatenate(times) // task.window_us) * task.window_us
    before = int(times[-2][-1]) if round_ else 0
    ends = starts + task.window_us + lateness_us
    return [int(s) for s, end in zip(starts, ends, strict=True) if before <= end < times[-1][-1]]


if __name__ == "__main__":
    given = Plan.decode(sys.argv[1])
    if len(sys.argv) > 2:
        print(json.dumps(live(given, float(sys.argv[2]))))
    else:
        preload(given)
        print("{}")
