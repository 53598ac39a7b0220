"""The made-up devices, in one process and in virtual time.

Spool, uplink, acceptance and the fetching of artifacts are the device's code; one producer and one
reader serve all devices. What a version answers is drawn by its quality (scenario.QUALITY): no
model runs.
"""

import math
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_client.downlink import Downlink
from edge_client.spool.frames import SpoolLimits
from edge_client.spool.queue import Spool
from edge_client.uplink.messages import of_events
from edge_client.uplink.uplink import Uplink
from streams.contract.accounting import DeviceAccount
from streams.contract.artifact import Artifact, unpack
from streams.contract.decisions import Delivery, Ref
from streams.contract.documents import DeviceState
from streams.contract.events.compact import encode_block
from streams.contract.events.messages import Headers, event_columns, task_layout
from streams.contract.task import Task
from streams.contract.topics import RELEASES, topic_name
from streams.kafka.producer import Done, Producer
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from streams.runtime.trust import Acceptance
from tests.e2e.soak.scenario import DAY_US, EPOCH_US, QUALITY, STEP_H, Scenario

HEARTBEAT_S = 6 * 3600.0  # of virtual time
LIMITS = SpoolLimits(file_bytes=16_384, total_bytes=1 << 20)
SMALL = SpoolLimits(file_bytes=4_096, total_bytes=12_288)  # of every tenth device: it overflows
DRAIN_S = 120.0


class Shared:
    """The producer of all devices; a device that closes it does not end it."""

    def __init__(self, settings: BrokerSettings) -> None:
        self._producer = Producer(settings)

    def send(self, topic: str, key: bytes, value: bytes, headers: Headers, done: Done) -> None:
        self._producer.send(topic, key, value, headers, done)

    def close(self, timeout_s: float) -> None:
        """Leave it open."""

    def end(self) -> None:
        self._producer.close(10.0)


class MadeUpSlots:
    """A device's slots without models: which version it serves, and the one before."""

    def __init__(self, task: Task, trusted: Callable[[], Sequence[Ed25519PublicKey]]) -> None:
        self._task, self._trusted = task, trusted
        self.active: str | None = None
        self.previous: str | None = None
        self.refused: dict[str, str] = {}
        self._artifacts: dict[str, Artifact] = {}

    def kept(self, model: str) -> Artifact:
        return self._artifacts[model]

    def withdraw(self, withdrawn: dict[str, str], _stable: str | None) -> None:
        self.refused.update({name: f"withdrawn: {why}" for name, why in withdrawn.items()})

    def install(self, data: bytes, digest: str | None = None) -> None:
        task = self._task
        found = unpack(
            data, self._trusted(), task=task.name, task_version=task.version, digest=digest
        )
        self._artifacts[found.model] = found
        self._serve(found.model)
        self._artifacts = {m: a for m, a in self._artifacts.items()
                           if m in (self.active, self.previous)}  # fmt: skip

    def reinstall(self, model: str) -> None:
        self._serve(model)

    def _serve(self, model: str) -> None:
        self.active, self.previous = model, self.active


class Silent:
    """A reader to which nothing comes while a version is fetched."""

    def poll(self, _timeout_s: float) -> list[object]:
        return []


@dataclass
class Context:
    """What all devices share. fetched: artifacts by digest; the first device's fetch is real."""

    task: Task
    broker: BrokerSettings
    folder: Path
    trusted: Sequence[Ed25519PublicKey]
    sender: Shared
    now_s: float = 0.0  # virtual
    fetched: dict[str, bytes] = field(default_factory=dict)


class Device:
    """One made-up device."""

    def __init__(self, context: Context, name: str, number: int) -> None:
        self.name, self._context = name, context
        self._folder = context.folder / name
        self._limits = SMALL if number % 10 == 0 else LIMITS
        self._dice = np.random.default_rng(number)
        self.offline_days = 0
        self._ahead_us = 0
        acceptance = Acceptance(self._folder, context.task, context.trusted)
        self._acceptance = acceptance
        self.slots = MadeUpSlots(context.task, lambda: acceptance.trusted)
        self.downlink = Downlink(
            context.task, name, context.broker, slots=self.slots,  # type: ignore[arg-type]
            acceptance=acceptance, samples=None,  # type: ignore[arg-type]
            downloads=self._folder / "downloads",
            invited=lambda *_given, **_named: None,
        )  # fmt: skip
        self._share_fetching()
        self._open()

    def _share_fetching(self) -> None:
        own, fetched = self.downlink._fetching.fetch, self._context.fetched

        def fetch(ref: Ref, deliveries: Sequence[Delivery], url: str, *more: Any) -> bytes:
            if ref.digest not in fetched:
                fetched[ref.digest] = own(ref, deliveries, url, *more)
            return fetched[ref.digest]

        self.downlink._fetching.fetch = fetch  # type: ignore[method-assign, assignment]

    def _open(self) -> None:
        context = self._context
        self.spool = Spool(self._folder / "spool", self._limits)
        self.uplink = Uplink(
            context.task.id, self.name, self.spool,
            of_events(task_layout(context.task), self.name, self.spool),
            lambda: context.sender, self.state, news=self.news,
            heartbeat_s=HEARTBEAT_S, clock=lambda: context.now_s,
            stall_s=math.inf,  # hours pass between two steps
        )  # fmt: skip

    def restart(self) -> None:
        """As after a crash: what was not settled is sent again."""
        self._open()

    def live(self, scenario: Scenario) -> None:
        """Draw what happens to it on the day that begins."""
        self.offline_days = max(0, self.offline_days - 1)
        if self._dice.random() < scenario.offline:
            self.offline_days = int(self._dice.integers(1, 4))
        self._ahead_us = 0
        if self._dice.random() < scenario.wrong_clock:
            self._ahead_us = int(self._dice.choice([-1, 1, 2])) * DAY_US
        if self._dice.random() < scenario.restart:
            self.restart()

    def produce(self, begin_us: int, scenario: Scenario) -> None:
        """Answer the segments of one step."""
        if self.slots.active is None:
            return
        count, task = STEP_H * 3600 // scenario.every_s, self._context.task
        at_us = begin_us + np.arange(count) * scenario.every_s * 1_000_000
        kind = self._dice.integers(0, 2, count)
        means = (2 * kind - 1) * np.abs(self._dice.normal(1, 0.2, count))
        segments = means[:, None, None] + self._dice.normal(0, 0.1, (count, *task.segment_shape))
        right = self._dice.random(count) < QUALITY[int(self.slots.active.partition("-")[0])]
        outputs = np.full((count, 2), -2.0, np.float32)
        outputs[np.arange(count), np.where(right, kind, 1 - kind)] = 2.0
        labels = [np.array([k]) if d < 0.1 else None
                  for k, d in zip(kind, self._dice.random(count), strict=True)]  # fmt: skip
        columns = event_columns(
            task, first=self.spool.next_seq, times=(at_us + self._ahead_us).astype(np.int64),
            model=self.slots.active, outputs=outputs, labels=labels,
            segments=segments.astype(np.float32),
        )  # fmt: skip
        self.spool.append(count, encode_block(columns), mark=int(at_us[-1]))

    def step(self) -> bool:
        """Send and settle; return whether something is left in the spool or in flight."""
        while self.uplink.step():
            pass
        return bool(self.uplink._flight) or self.spool.account().pending > 0

    def consider(self, messages: Sequence[object]) -> None:
        """Follow the decisions."""
        self.downlink._accept(messages)  # type: ignore[arg-type]
        self.downlink._consider(Silent())  # type: ignore[arg-type]

    def news(self) -> object:
        return self.slots.active, self.slots.previous, self.slots.refused, self.downlink.error

    def state(self) -> DeviceState:
        account = self.spool.account()
        return DeviceState(
            device=self.name, task=self._context.task.name, time_us=time.time_ns() // 1000,
            epoch=self.spool.epoch, active=self.slots.active or "", previous=self.slots.previous,
            produced=account.produced, delivered=account.delivered, dropped=account.dropped,
            pending=account.pending, refused=self.slots.refused,
            release=self._acceptance.seq or None, heartbeat_s=20.0, error=self.downlink.error,
        )  # fmt: skip


class Fleet:
    """All devices, and their step of virtual time."""

    def __init__(self, context: Context, scenario: Scenario) -> None:
        self.context, self._scenario = context, scenario
        self.devices = [
            Device(context, f"device-{number:05}", number) for number in range(scenario.devices)
        ]
        self._reader = Reader(context.broker, [topic_name(context.task.id, RELEASES)])
        self._ending = threading.Event()

    def follow(self) -> None:
        """Let every online device follow `releases`; one that was offline sees it all the same."""
        messages = self._reader.poll(0.1)
        for device in self.devices:
            device.consider(messages)

    def day(self) -> None:
        for device in self.devices:
            device.live(self._scenario)

    def step(self, step: int) -> None:
        """One step of all devices, sent by those that are online."""
        self.follow()
        begin_us = EPOCH_US + step * STEP_H * 3_600_000_000
        self.context.now_s += STEP_H * 3600.0
        for device in self.devices:
            device.produce(begin_us, self._scenario)
        self._send([device for device in self.devices if not device.offline_days])

    def drain(self) -> None:
        """Every device comes back and sends what it has."""
        self.context.now_s += HEARTBEAT_S
        self._send(self.devices)
        self.context.now_s += HEARTBEAT_S  # the last state has the last figures
        self._send(self.devices)

    def _send(self, devices: Sequence[Device]) -> None:
        left, deadline = list(devices), time.monotonic() + DRAIN_S
        while left := [device for device in left if device.step()]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(left)} devices still have events after {DRAIN_S:.0f} s")
            self._ending.wait(0.01)

    def served(self) -> Counter[str]:
        return Counter(device.slots.active or "" for device in self.devices)

    def accounts(self) -> dict[tuple[str, str], DeviceAccount]:
        """By (device, epoch), counted from the frames."""
        return {(d.name, d.spool.epoch): d.spool.audit() for d in self.devices}

    def end(self) -> None:
        self._reader.close()
        self.context.sender.end()
        shutil.rmtree(self.context.folder, ignore_errors=True)
