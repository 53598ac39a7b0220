"""`python -m tests.bench.federation.real.devices TASK PLAN`: many devices' trainers and sockets in
one process, as their agents have them, without the agents' inference and uplink.

PLAN is a JSON list of `Planned`. A device that drops out says nothing for `away_s` and then hangs
up; one that is slow takes `slow` times as long. Both are the device's, for the same rounds as the
stock ClientApp's.
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
from streams.contract.task import Task, load_task
from streams.contract.work import WorkReply, WorkRequest


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
        self._plan = plan
        samples = Samples(task, folder / "samples.arrow")
        data = np.load(plan.data)
        answer, at = np.zeros(task.outputs, np.float32), 0
        for x, y, split in (("x", "y", TRAIN), ("held_x", "held_y", HELD_OUT)):
            for segment, label in zip(data[x], data[y], strict=True):
                at += 1
                samples.add(at, segment, answer, split, label)
        self._trainer = Trainer(reference, plan.device, folder, samples)
        self._service = SocketServer(Path(plan.socket), self._work, lambda _: None)  # type: ignore[arg-type,return-value]
        self._service.start()

    def _work(self, request: WorkRequest, block: bytes) -> tuple[WorkReply, bytes]:
        plan = self._plan
        reply = self._trainer.work(request, block)
        if request.op == "train":
            dice = random.Random(f"{plan.device}/{request.round}")
            if dice.random() < plan.drop:
                time.sleep(plan.away_s)
                raise ConnectionError("the device was away")
            time.sleep((plan.slow - 1) * reply[0].metrics.get("seconds", 0.0))
        return reply

    def stop(self) -> None:
        self._service.stop()
        self._trainer.stop()


def main(reference: str, plan: Path) -> None:
    task = load_task(reference)
    devices = [Device(reference, task, Planned(**one)) for one in json.loads(plan.read_bytes())]
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    plan.with_suffix(".ready").touch()
    ended.wait()
    for device in devices:
        device.stop()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
