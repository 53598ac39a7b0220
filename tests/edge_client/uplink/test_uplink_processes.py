"""Real agents on a real broker: what a metered line gets when they are killed, what leaves a device
whose readings must not, and what a wrong password does."""

import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_client.spool.queue import Spool
from edge_client.spool.writer import sampled
from edge_client.uplink.task_queues import SPOOL, queue_folder
from streams.contract.accounting import IntervalSet
from streams.contract.events.messages import Drop
from streams.contract.events.records import EventBatch, decode_event_message
from streams.contract.task import Task
from streams.contract.topics import EVENTS, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.agent_process import AgentProcess, first_model
from tests.rig.processes.workers import until
from tests.rig.servers.secure_node import SecureNode

pytestmark = pytest.mark.kafka


class Device:
    """A `tidewheel edge run` process with a task and a state folder of its own."""

    def __init__(self, folder: Path, broker: BrokerSettings, task: Task, *words: str) -> None:
        self.folder, self.broker, self.task, self.words = folder, broker, task, words
        (folder / "task.py").write_text(
            "from dataclasses import replace\n"
            "from tests.rig.made_up.tiny_task import task as tiny\n"
            f"task = replace(tiny, name={task.name!r}, upload={task.upload!r})\n"
        )
        self.agent: AgentProcess | None = None

    def start(self) -> None:
        fields = self.broker.model_dump(exclude={"bootstrap"}, exclude_none=True)
        self.agent = AgentProcess(
            self.folder, "--model", first_model(self.folder, self.task), "--drain", "30",
            *self.words, reference=f"{self.folder}/task.py:task", kafka=self.broker.bootstrap,
            environ={f"TIDEWHEEL_KAFKA_{name.upper()}": text for name, text in fields.items()},
        )  # fmt: skip

    def end(self, number: signal.Signals) -> None:
        assert self.agent is not None
        self.agent.end(number)

    @property
    def log(self) -> str:
        assert self.agent is not None
        return self.agent.log

    @property
    def spool(self) -> Spool:
        """The spool of a device that has ended."""
        return Spool(queue_folder(self.folder / "devices" / "d0", SPOOL, self.task))

    def messages(self, name: str, broker: BrokerSettings | None = None) -> list[Received]:
        reader = Reader(broker or self.broker, [topic_name(self.task.id, name)])
        try:
            return reader.read_to_end()
        finally:
            reader.close()


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[list[Device]]:
    made: list[Device] = []
    yield made
    for device in made:
        if device.agent is not None:
            device.agent.close()


class Topic:
    """What a device's messages on `events` say of its seqs."""

    def __init__(self, device: Device) -> None:
        self.events, self.dropped = IntervalSet(), IntervalSet()
        self.rows: dict[int, dict[str, object]] = {}
        for m in device.messages(EVENTS):
            record = decode_event_message(device.task, m.key, m.value, m.headers)
            if isinstance(record, Drop):
                assert record.reason == "metered"
                self.dropped.add(record.first, record.last)
            else:
                self.events.add(record.first, record.last)
                self.rows |= {row["seq"]: row for row in record.rows.to_pylist()}
            assert isinstance(record, Drop | EventBatch)

    def __len__(self) -> int:
        return len(self.events) + len(self.dropped)


@pytest.mark.timeout(200)
def test_a_metered_devices_account_adds_up_over_kills(
    kafka: BrokerSettings, tmp_path: Path, devices: list[Device]
) -> None:
    task = replace(tiny, name="metered")
    ensure_topics(kafka, topic_specs(task.id, 1))
    device = Device(tmp_path, kafka, task, "--speed", "100", "--metered", "0.3")
    devices.append(device)
    seen, noise = 0, random.Random(1)
    for _ in range(5):
        device.start()
        wanted = seen + noise.randrange(20, 400)
        until(lambda wanted=wanted: len(Topic(device)) >= wanted, f"{wanted} seqs on the topic")
        device.end(signal.SIGKILL)
        seen = len(Topic(device))
    device.start()
    until(lambda: len(Topic(device)) > seen + 50, "it goes on")
    device.end(signal.SIGTERM)

    spool, topic = device.spool, Topic(device)
    account = spool.account()
    assert account.pending == 0
    assert account.dropped == {"metered": len(topic.dropped)}
    assert account.delivered == len(topic.events)
    assert len(topic) == account.produced == spool.next_seq > 150
    assert list(IntervalSet([*topic.events, *topic.dropped])) == [(0, account.produced - 1)]
    assert all(sampled(seq, 0.3) == (seq in topic.events) for seq in range(account.produced))


def test_a_device_with_a_wrong_password_says_so_once_and_goes_on_answering(
    secure_node: SecureNode, tmp_path: Path, devices: list[Device]
) -> None:
    task = replace(tiny, name="refused")
    ensure_topics(secure_node.settings("plain"), topic_specs(task.id, 1))
    refused = secure_node.settings("scram-password", password="wrong")
    device = Device(tmp_path, refused, task, "--speed", "50", "--drain", "0")
    devices.append(device)
    device.start()
    what = "it refuses the user .* TIDEWHEEL_KAFKA_PASSWORD"
    until(lambda: "TIDEWHEEL_KAFKA_PASSWORD" in device.log, what)
    files = queue_folder(tmp_path / "devices" / "d0", SPOOL, task)
    size = sum(path.stat().st_size for path in files.glob("*.seg"))
    until(lambda: sum(p.stat().st_size for p in files.glob("*.seg")) > size + 20_000, "it answers")
    device.end(signal.SIGTERM)
    lines = [line for line in device.log.splitlines() if "TIDEWHEEL_KAFKA_PASSWORD" in line]
    assert len(lines) <= 2, lines  # the uplink's, and the downlink's where it says so too
    kept = device.spool.account()
    assert kept.pending == kept.produced > 20

    device.broker = secure_node.settings("scram-password")
    device.words = ("--speed", "50", "--drain", "30")
    device.start()
    plain_door = secure_node.settings("plain")
    until(lambda: len(device.messages(EVENTS, plain_door)) > 0, "the right password delivers")
    device.end(signal.SIGTERM)
    assert device.spool.account().pending == 0
