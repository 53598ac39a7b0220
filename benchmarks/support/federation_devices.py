"""Devices of a federation in one process, as their agents have them, without inference and events:
samples, a trainer, a socket, a state on `fleet`, and a SuperNode that an invitation starts.

    python -m benchmarks.support.federation_devices TASK PLAN

PLAN is a JSON list of `Planned`. A device that drops out of a round is silent for `AWAY_S`, on
`fleet` too, and then hangs up: the same rounds as the stock ClientApp's.
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

from edge_client.ipc import SocketServer
from edge_client.participation import Joining, Participation
from edge_client.samples.samples import Samples
from edge_client.samples.table import HELD_OUT, TRAIN
from edge_client.training.trainer_client import Trainer
from streams.contract.documents import DeviceState
from streams.contract.task import Task, load_task
from streams.contract.topics import FLEET, INVITATIONS, topic_name
from streams.contract.work import AgentReply, AgentRequest, WorkReply, WorkRequest
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from streams.runtime.trust import load_public_key

LOOK_S, STATE_S = 0.1, 1.0
AWAY_S = 60.0  # until Flower gives up a node of which it hears nothing


@dataclass(frozen=True)
class Planned:
    """data: segments as .npz; trusted: the public key of invitations; drop: a chance a round."""

    device: str
    data: str
    folder: str
    socket: str
    trusted: str
    drop: float = 0.0


class Device:
    def __init__(self, reference: str, task: Task, plan: Planned) -> None:
        folder = Path(plan.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._plan, self._task, self.name = plan, task, plan.device.encode()
        self.away = self._working = self.changed = False
        self._samples = samples = Samples(task, folder / "samples.rows")
        data = np.load(plan.data)
        answer, at = np.zeros(task.outputs, np.float32), 0
        for x, y, split in (("x", "y", TRAIN), ("held_x", "held_y", HELD_OUT)):
            for segment, label in zip(data[x], data[y], strict=True):
                at += 1
                samples.add(at, at, segment, answer, split, label)
        self._trainer = Trainer(reference, plan.device, folder, samples)
        self._service = SocketServer(Path(plan.socket), self._work, self._tell)
        key = load_public_key(Path(plan.trusted))
        self.runs = Participation(
            task, plan.device, folder, Path(plan.socket), lambda: [key], Joining(),
            lambda: self._working, self._trainer.interrupt,
        )  # fmt: skip
        self._service.start()

    def _tell(self, request: AgentRequest) -> AgentReply:
        if request.op == "joined":
            self.runs.joined(request.node)
            self.changed = True
            self._trainer.prepare()
        return AgentReply()

    def _work(self, request: WorkRequest, block: bytes) -> tuple[WorkReply, bytes]:
        self._working = True
        try:
            reply = self._trainer.work(request, block)
            dice = random.Random(f"{self._plan.device}/{request.round}")
            if request.op == "train" and dice.random() < self._plan.drop:
                self.away = True
                time.sleep(AWAY_S)
                raise ConnectionError("the device was away")
            return reply
        finally:
            self.away = self._working = False

    def state(self) -> bytes:
        """Return what it says on `fleet`."""
        return DeviceState(
            device=self._plan.device, task=self._task.name, time_us=time.time_ns() // 1000,
            epoch="bench", active="", produced=0, delivered=0, pending=0,
            samples=self._samples.counts()[0], node=self.runs.node,
            phase="training" if self._trainer.busy else "running", heartbeat_s=STATE_S,
        ).encode()  # fmt: skip

    def stop(self) -> None:
        self.runs.stop()
        self._service.stop()
        self._trainer.stop()


def main(reference: str, plan: Path) -> None:
    task = load_task(reference)
    devices = [Device(reference, task, Planned(**one)) for one in json.loads(plan.read_bytes())]
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    settings = BrokerSettings.read()  # of the environment
    producer, topic = Producer(settings), topic_name(task.id, FLEET)
    reader = Reader(settings, [topic_name(task.id, INVITATIONS)])
    plan.with_suffix(".ready").touch()
    due = time.monotonic()
    while not ended.is_set():
        for message in reader.poll(LOOK_S):
            for device in devices:
                device.runs.receive(message.value)
        if turn := time.monotonic() >= due:
            due += STATE_S
        for device in devices:
            if turn:
                device.runs.look()
            if (turn or device.changed) and not device.away:
                device.changed = False
                producer.send(topic, device.name, device.state(), [], lambda _: None)
    reader.close()
    producer.close()
    for device in devices:
        device.stop()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
