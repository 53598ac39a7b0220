"""A controller that is killed while it publishes a snapshot of the fleet leaves the one before.

A process of its own, a real Kafka, SIGKILL after each of the snapshot's messages.
"""

import signal
import subprocess
import sys
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from streams.contract.topics import VIEW, topic_name, topic_specs
from streams.fleet import following
from streams.fleet.following import last_snapshot, publish
from streams.fleet.view import FleetView
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings

PUBLISH = """
import os, signal, sys
from streams.fleet import following
from streams.fleet.following import last_snapshot, publish
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings

following.PART = 100
broker, task, kill_after = BrokerSettings(bootstrap=sys.argv[1]), sys.argv[2], int(sys.argv[3])


class Dying(Producer):
    sent = 0

    def put(self, *given, **more):
        offset = super().put(*given, **more)
        self.sent += 1
        if self.sent == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return offset


view = last_snapshot(broker, task, 10)
view.windows = 2
publish(Dying(broker), view, 2)
"""


def messages(broker: BrokerSettings, task: str) -> int:
    with closing(Reader(broker, [topic_name(task, VIEW)])) as reader:
        return len(reader.read_to_end())


def killed(broker: BrokerSettings, task: str, after: int) -> int:
    """The exit code of a process that publishes what it read, with 2 windows."""
    argv = [sys.executable, "-c", PUBLISH, broker.bootstrap, task, str(after)]
    root = Path(__file__).parents[2]
    return subprocess.run(argv, cwd=root, timeout=60, check=False).returncode


@pytest.mark.kafka
def test_a_kill_after_any_message_leaves_the_snapshot_before(
    kafka: BrokerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = f"t-{uuid.uuid4().hex[:8]}"
    ensure_topics(kafka, topic_specs(task))
    view = FleetView(task, windows=1)
    monkeypatch.setattr(following, "PART", 100)
    with closing(Producer(kafka)) as producer:
        publish(producer, view, 1)
    parts = messages(kafka, task)
    assert parts > 2
    for after in range(1, parts):
        assert killed(kafka, task, after) == -signal.SIGKILL
        found = last_snapshot(kafka, task, 10)
        assert found is not None
        assert (found.windows, found.slot) == (1, view.slot)
    assert killed(kafka, task, 0) == 0
    found = last_snapshot(kafka, task, 10)
    assert found is not None
    assert (found.windows, found.slot) == (2, 1 - view.slot)
