"""`python -m tests.bench.federation.real.devices TASK PLAN`: many devices' trainers, sockets and
states on `fleet` in one process, as their agents have them, without the agents' inference and
events. The broker is that of TIDEWHEEL_KAFKA.

PLAN is a JSON list of `Planned`. A device that drops out says nothing for `away_s`, on `fleet`
neither, and then hangs up; one that is slow takes `slow` times as long. Both are the device's, for
the same rounds as the stock ClientApp's.
"""

import json
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_client.control.socket_server import SocketServer
from edge_client.samples.samples import Samples
from edge_client.samples.splits import HELD_OUT, TRAIN
from edge_client.training.trainer_client import Trainer
from edge_client.uplink.heartbeat import Heartbeat
from streams.contract.documents import DeviceState
from streams.contract.task import Task, load_task
from streams.contract.topics import FLEET, topic_name
from streams.contract.work import WorkReply, WorkRequest
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings

LOOK_S = 0.25  # as the uplink looks


@dataclass(frozen=True)
class Planned:
    device: str
    data: str
    folder: str
    socket: str
    slow: float = 1.0
    drop: float = 0.0
    away_s: float = 60.0


class Device:
    def __init__(self, reference: str, task: Task, plan: Planned) -> None:
        folder = Path(plan.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._plan, self._task, self.away = plan, task, False
        self._node: int | None = None
        self._beat = Heartbeat()
        self._samples = samples = Samples(task, folder / "samples.rows")
        data = np.load(plan.data)
        answer, at = np.zeros(task.outputs, np.float32), 0
        for x, y, split in (("x", "y", TRAIN), ("held_x", "held_y", HELD_OUT)):
            for segment, label in zip(data[x], data[y], strict=True):
                at += 1
                samples.add(at, at, segment, answer, split, label)
        self._trainer = Trainer(reference, plan.device, folder, samples)
        self._service = SocketServer(Path(plan.socket), self._work, lambda _: None)  # type: ignore[arg-type,return-value]
        self._service.start()

    @property
    def name(self) -> str:
        return self._plan.device

    def _work(self, request: WorkRequest, block: bytes) -> tuple[WorkReply, bytes]:
        self._node = request.node
        self._beat.work()
        try:
            return self._worked(request, block)
        finally:
            self._beat.rest(time.monotonic())

    def _worked(self, request: WorkRequest, block: bytes) -> tuple[WorkReply, bytes]:
        plan = self._plan
        reply = self._trainer.work(request, block)
        if request.op == "train":
            dice = random.Random(f"{plan.device}/{request.round}")
            if dice.random() < plan.drop:
                self.away = True
                time.sleep(plan.away_s)
                self.away = False
                raise ConnectionError("the device was away")
            time.sleep((plan.slow - 1) * reply[0].metrics.get("seconds", 0.0))
        return reply

    def report(self) -> bytes | None:
        """Return the state that is due on `fleet`, if one is."""
        now = time.monotonic()
        if self.away or not self._beat.looks(now):
            return None
        state = DeviceState(
            device=self._plan.device, task=self._task.name, time_us=time.time_ns() // 1000,
            epoch="bench", active="", produced=0, delivered=0, pending=0,
            samples=self._samples.counts()[0], node=self._node,
            phase="training" if self._trainer.busy else "running",
        )  # fmt: skip
        if not self._beat.due(state, now):
            return None
        return state.model_copy(update={"heartbeat_s": self._beat.interval_s}).encode()

    def stop(self) -> None:
        self._service.stop()
        self._trainer.stop()


def main(reference: str, plan: Path) -> None:
    task = load_task(reference)
    devices = [Device(reference, task, Planned(**one)) for one in json.loads(plan.read_bytes())]
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    producer, topic = Producer(BrokerSettings()), topic_name(task.name, FLEET)
    plan.with_suffix(".ready").touch()
    while not ended.wait(LOOK_S):
        for device in devices:
            if (said := device.report()) is not None:
                producer.send(topic, device.name.encode(), said, [], lambda _: None)
    producer.close()
    for device in devices:
        device.stop()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
