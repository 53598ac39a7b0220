"""How long a run takes to wake 100 devices of 10,000: `python -m benchmarks.invitations`.

Kafka, SuperLink, SuperExec and the run are real. The devices are simulated in this process: their
states are on `fleet`, one reader of `invitations` follows for all of them, and each that is invited
joins the SuperLink by Flower's client, as edge_client.supernode does, and reports its node. What is
missing of a device is its process: a real one also takes 0.7 s of its own core to start.
"""

import subprocess
import threading
import time
from argparse import ArgumentParser
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from flwr.supernode.fleet_http_connection import http_request_response

from benchmarks.frame import Bench, main
from benchmarks.support.processes import tidewheel, until
from compose.launcher import flower_processes
from compose.launcher.state_dir import StateDir
from federation.controller.flwr_cli import ConfigValue
from streams.contract.documents import DeviceState
from streams.contract.errors import BrokerUnavailable
from streams.contract.invitations import Invitation, SignedInvitation
from streams.contract.task import Task, load_task
from streams.contract.topics import FLEET, INVITATIONS, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from streams.runtime.trust import load_public_key
from tests.rig.processes.flower import FlowerStack

TASK = """
import dataclasses
from tidewheel import Training, load_task
training = Training(devices_per_round={asked}, rounds=1)
task = dataclasses.replace(load_task({template!r}), training=training)
"""


@dataclass
class Crowd:
    """The simulated devices; the times are seconds on the monotonic clock."""

    task: Task
    settings: BrokerSettings
    producer: Producer
    trusted: Path
    invited_at: float = 0.0
    joined: list[float] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)

    def publish(self, device: str, node: int | None = None) -> None:
        """Say on `fleet` how a device is."""
        state = DeviceState(
            device=device, task=self.task.name, time_us=time.time_ns() // 1000, epoch="0-0",
            active="", produced=0, delivered=0, pending=0, samples=500, node=node, heartbeat_s=20.0,
        )  # fmt: skip
        topic = topic_name(self.task.id, FLEET)
        self.producer.send(topic, device.encode(), state.encode(), [], lambda _error: None)

    def follow(self) -> None:
        """Let those that are invited join, until the end."""
        key, known = load_public_key(self.trusted), set[str]()
        with suppress(BrokerUnavailable):  # at the end
            reader = Reader(self.settings, [topic_name(self.task.id, INVITATIONS)])
            while not self.ending.is_set():
                for message in reader.poll(0.2):
                    found = SignedInvitation.decode(message.value).verified([key])
                    self.invited_at = self.invited_at or time.monotonic()
                    for device in set(found.devices) - known:
                        known.add(device)
                        threading.Thread(
                            target=self._join, args=(device, found), daemon=True
                        ).start()
            reader.close()

    def _join(self, device: str, invitation: Invitation) -> None:
        with http_request_response(invitation.superlink, True) as link:
            node, receive = link[0], link[1]
            self.joined.append(time.monotonic())
            self.publish(device, node)
            while not self.ending.is_set():
                with suppress(httpx.HTTPStatusError):  # too many at a time: asked again
                    if receive() is not None:
                        self.asked.append(time.monotonic())
                        return
                time.sleep(invitation.pull_s)


def invitations(bench: Bench) -> None:
    folder = bench.place("run")
    folder.mkdir()
    devices, asked = bench.size((bench.asked.devices, bench.asked.wanted), (200, 10))
    subprocess.run(tidewheel("new", "pumps"), cwd=folder, check=True, capture_output=True)
    text = TASK.format(template=f"{folder / 'pumps.py'}:task", asked=asked)
    (folder / "task.py").write_text(text)
    reference, layout = f"{folder / 'task.py'}:task", StateDir(folder / "state")
    prepare = tidewheel("prepare", reference, "--state", str(layout.state))
    subprocess.run(prepare, check=True, capture_output=True)
    task = load_task(reference)
    ensure_topics(bench.kafka, topic_specs(task.id))
    env = {"TIDEWHEEL_KAFKA": bench.kafka.bootstrap}
    with ExitStack() as stack:
        at = stack.enter_context(FlowerStack(layout.state, {}, env)).address
        producer = Producer(bench.kafka)
        stack.callback(producer.close)
        crowd = Crowd(task, bench.kafka, producer, layout.public_key)
        stack.callback(crowd.ending.set)
        for number in range(devices):
            crowd.publish(f"pump-{number:05d}")
        threading.Thread(target=crowd.follow, daemon=True).start()
        config: dict[str, ConfigValue] = {
            "task": reference, "state": str(layout.state), "superlink": at,
            "minimum-nodes": asked, "kafka": bench.kafka.bootstrap,
        }  # fmt: skip
        submission = flower_processes.submission(layout.state, at, config)
        began = time.monotonic()
        submission.start({}, folder)
        until(f"{asked} devices have work", lambda: len(crowd.asked) >= asked, 120)
    joined, working = max(crowd.joined), max(crowd.asked)
    columns = ["s to the invitation", "to all joined", "to all at work", "in all"]
    steps = crowd.invited_at - began, joined - crowd.invited_at, working - joined, working - began
    bench.table(f"A run of {asked} of {devices:,} devices", columns, [list(steps)])
    bench.goal(f"a run of {asked} of {devices:,} devices starts, s", steps[-1], at_most=15.0)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--wanted", type=int, default=100)


if __name__ == "__main__":
    main("invitations", {"invitations": invitations}, ("flwr",), _options)
