"""One federated run on real Flower processes and a real Kafka."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from compose import flower
from federation import release
from federation.registry import Registry
from streams.contract.artifact import unpack
from streams.contract.bus import BrokerSettings, Reader, Received, ensure_topics
from streams.contract.documents import RoundEvent
from streams.contract.task import Task
from streams.contract.topics import ARTIFACTS, RELEASES, ROUNDS, topic_name, topic_specs
from tests.federation.conftest import TINY
from tests.federation.flower_stack import FlowerStack, wait_for
from tests.federation.stand_in_agent import StandInAgent


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A short path: a Unix socket's name has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="tw-") as folder:
        yield Path(folder)


def not_a_number(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.full_like(value, np.nan) for name, value in weights.items()}


def read(broker: BrokerSettings, task: str, topic: str) -> list[Received]:
    reader = Reader(broker, [topic_name(task, topic)])
    try:
        return reader.read_to_end()
    finally:
        reader.close()


@pytest.mark.kafka
@pytest.mark.timeout(420)
def test_a_run_promotes_and_announces_what_sound_devices_learned(
    kafka: BrokerSettings, tiny: Task, registry: Registry, tmp_path: Path, sockets: Path
) -> None:
    ensure_topics(kafka, topic_specs(tiny.name))
    first = registry.models()
    devices = {name: sockets / f"{name}.sock" for name in ("d0", "d1", "d2")}
    with ExitStack() as stack:
        for name, path in devices.items():
            trick = not_a_number if name == "d2" else None
            stack.enter_context(StandInAgent(tiny, name, path, trick))
        env = {"TIDEWHEEL_KAFKA": kafka.bootstrap}
        processes = stack.enter_context(FlowerStack(tmp_path, devices, env))
        config = {"task": TINY, "state": str(tmp_path), "minimum-nodes": 3, "rounds": 2}
        submission = flower.submission(tmp_path, f"127.0.0.1:{processes.port}", config)
        run = submission.start({"epochs": 6}, tmp_path)
        wait_for("the run ends", lambda: submission.status(run).startswith("finished"), 300)
        assert submission.status(run) == "finished:completed", processes.log("superlink")
    assert processes.members() == []

    events = [RoundEvent.decode(message.value) for message in read(kafka, tiny.name, ROUNDS)]
    check_events([event for event in events if event.run == run])
    serving = registry.serving()
    assert serving is not None
    assert (serving.manifest.number, [serving.manifest.base]) == (2, first)
    offered = release.current(read(kafka, tiny.name, RELEASES), tiny.name.encode())
    assert offered is not None
    assert (offered.model, offered.number) == (serving.model, 2)
    chunks = [
        message.value or b""
        for message in read(kafka, tiny.name, ARTIFACTS)
        if message.offset >= offered.offset and message.key == offered.digest.encode()
    ]
    data = b"".join(chunks[: offered.chunks])
    assert len(data) == offered.size
    unpack(data, registry.trusted, task="tiny", task_version=1, digest=offered.digest)


def check_events(events: list[RoundEvent]) -> None:
    """Two rounds of two sound devices and one that sends NaN, then the gate."""
    told = [(e.kind, e.round, e.device) for e in events if e.kind in ("admitted", "refused")]
    assert sorted(told) == [
        (kind, number, device)
        for kind, names in (("admitted", ("d0", "d1")), ("refused", ("d2",)))
        for number in (1, 2)
        for device in names
    ]
    assert {e.reason.partition(":")[0] for e in events if e.kind == "refused"} == {"not-finite"}
    kinds = [e.kind for e in events if e.kind not in ("admitted", "refused")]
    one_round = ["started", "aggregated", "evaluated"]
    assert kinds == [*one_round, *one_round, "evaluated", "promoted", "finished"]
