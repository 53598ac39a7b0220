"""How long a run takes to wake 100 devices of 10,000.

    python -m benchmarks.invitations [--devices 10000] [--asked 100]

Kafka, SuperLink, SuperExec and the run are real. The devices are simulated in this process: their
states are on `fleet`, one reader of `invitations` follows for all of them, and each that is invited
joins the SuperLink by Flower's client, as edge_client.supernode does, and reports its node. What is
missing of a device is its process: a real one also takes 0.7 s of its own core to start.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from flwr.supernode.fleet_http_connection import http_request_response

from compose.launcher import broker, flower_processes
from compose.launcher.broker import Launch
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
from streams.runtime.key_files import load_public_key

TASK = """
import dataclasses
from tidewheel import Training, load_task
training = Training(devices_per_round={asked}, over_selection=1.0, rounds=1)
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
    _ending: threading.Event = field(default_factory=threading.Event)

    def publish(self, device: str, node: int | None = None) -> None:
        """Say on `fleet` how a device is."""
        state = DeviceState(
            device=device, task=self.task.name, time_us=time.time_ns() // 1000, epoch="0-0",
            active="", produced=0, delivered=0, pending=0, samples=500, node=node, heartbeat_s=20.0,
        )  # fmt: skip
        topic = topic_name(self.task.name, FLEET)
        self.producer.send(topic, device.encode(), state.encode(), [], lambda _error: None)

    def follow(self) -> None:
        """Let those that are invited join, until the end."""
        key = load_public_key(self.trusted)
        with suppress(BrokerUnavailable):  # at the end
            reader = Reader(self.settings, [topic_name(self.task.name, INVITATIONS)])
            known: set[str] = set()
            while not self._ending.is_set():
                for message in reader.poll(0.2):
                    found = SignedInvitation.decode(message.value).verified([key])
                    self.invited_at = self.invited_at or time.monotonic()
                    for device in set(found.devices) - known:
                        known.add(device)
                        self._start(self._join, device, found)
            reader.close()

    def _start(self, work: Callable[..., None], *given: object) -> None:
        threading.Thread(target=work, args=given, daemon=True).start()

    def _join(self, device: str, invitation: Invitation) -> None:
        with http_request_response(invitation.superlink, True) as link:
            node, receive = link[0], link[1]
            self.joined.append(time.monotonic())
            self.publish(device, node)
            while not self._ending.is_set():
                with suppress(httpx.HTTPStatusError):  # too many at a time: asked again
                    if receive() is not None:
                        self.asked.append(time.monotonic())
                        return
                time.sleep(invitation.pull_s)

    def end(self) -> None:
        self._ending.set()


@contextmanager
def process(launch: Launch, log: Path) -> Iterator[None]:
    with log.open("ab") as output:
        started = subprocess.Popen(
            launch.argv, env={**os.environ, **launch.env}, stdout=output, stderr=output,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        yield
    finally:
        broker.stop(started)


def until(condition: Callable[[], bool], what: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {within_s:.0f} s: {what}")
        time.sleep(0.05)


def prepared(folder: Path, asked: int) -> str:
    """Write a task, and train its first models; return its reference."""
    tool = [sys.executable, "-m", "compose.cli.main"]
    subprocess.run([*tool, "new", "pumps"], cwd=folder, check=True, capture_output=True)
    text = TASK.format(template=f"{folder / 'pumps.py'}:task", asked=asked)
    (folder / "task.py").write_text(text)
    reference = f"{folder / 'task.py'}:task"
    state = ["--state", str(folder / "state")]
    subprocess.run([*tool, "prepare", reference, *state], check=True, capture_output=True)
    return reference


def measure(folder: Path, devices: int, asked: int) -> dict[str, float]:
    """Return seconds from the request of a run: to its invitation, to all that joined, to the work
    in their hands."""
    reference = prepared(folder, asked)
    task, layout = load_task(reference), StateDir(folder / "state")
    with ExitStack() as stack:
        choice = broker.choose(folder / "kafka", None, os.environ)
        stack.enter_context(broker.running(choice, folder / "kafka", folder / "broker.log"))
        ensure_topics(choice.settings, topic_specs(task.name))
        [port] = broker.free_ports(1)
        at = f"{flower_processes.HOST}:{port}"
        stack.enter_context(
            process(flower_processes.superlink(layout.state, port), folder / "superlink.log")
        )
        until(lambda: flower_processes.is_ready(port), "the SuperLink answers", 60)
        env = {"TIDEWHEEL_KAFKA": choice.settings.bootstrap}
        superexec = flower_processes.superexec(layout.state, port, env)
        stack.enter_context(process(superexec, folder / "superexec.log"))
        producer = Producer(choice.settings)
        stack.callback(producer.close)
        crowd = Crowd(task, choice.settings, producer, layout.public_key)
        stack.callback(crowd.end)
        for number in range(devices):
            crowd.publish(f"pump-{number:05d}")
        threading.Thread(target=crowd.follow, daemon=True).start()
        config: dict[str, ConfigValue] = {
            "task": reference, "state": str(layout.state), "superlink": at,
            "minimum-nodes": asked, "kafka": choice.settings.bootstrap,
        }  # fmt: skip
        submission = flower_processes.submission(layout.state, at, config)
        began = time.monotonic()
        submission.start({}, folder)
        until(lambda: len(crowd.asked) >= asked, f"{asked} devices have work", 120)
        return {
            "run requested to invitation": crowd.invited_at - began,
            "invitation to all joined": max(crowd.joined) - crowd.invited_at,
            "all joined to all at work": max(crowd.asked) - max(crowd.joined),
            "in all": max(crowd.asked) - began,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--asked", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidewheel-invitations-") as folder:
        found = measure(Path(folder), given.devices, given.asked)
    print(json.dumps({name: round(seconds, 2) for name, seconds in found.items()}, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
