"""Whatever is on `windows`, `fleet` and `rounds`, a live controller goes on: it passes over it, and
what is sound is answered."""

import threading
from collections.abc import Callable, Iterable

import pytest
from kafka import KafkaProducer

from streams.contract.documents import DeviceState, RoundEvent
from streams.contract.topics import FLEET, RELEASES, ROUNDS, WINDOWS, topic_name
from streams.contract.window_report import ModelWindow, WindowReport
from streams.kafka.settings import BrokerSettings
from tests.fakes.mangled import mangled
from tests.federation.controller.test_controller import Rig, rig, start
from tests.federation.flower_stack import wait_for

__all__ = ["rig", "start"]

COUNT = 400


def sound(rig: Rig) -> dict[str, tuple[bytes, bytes]]:
    """A key and a document of each topic."""
    state = DeviceState(
        device="d0", task=rig.name, time_us=5, epoch="e1", active="1-aaaaaaaa", produced=9,
        delivered=9, pending=0, refused={"1-aaaaaaaa": "x"}, dropped={"old": 1},
    )  # fmt: skip
    part = ModelWindow(events=3, agreeing=2, compared=3)
    report = WindowReport(
        task=rig.name, device="d0", window_us=0, end_us=5_000_000, revision=1, events=3,
        teacher_model="1-t", models={"1-aaaaaaaa": part},
    )  # fmt: skip
    event = RoundEvent(run="r9", kind="evaluated", time_us=5, model="2-b", metrics={"devices": 0.5})
    return {
        FLEET: (b"d0", state.encode()),
        WINDOWS: (b"d0", report.encode()),
        ROUNDS: (b"r9", event.encode()),
    }


@pytest.mark.kafka
@pytest.mark.parametrize("topic", [FLEET, WINDOWS, ROUNDS, RELEASES])
def test_a_live_controller_passes_over_what_it_cannot_read(
    rig: Rig, start: Callable[..., threading.Event], topic: str
) -> None:
    model = rig.serve(1)
    stopped = start(max_runs=1)
    rig.wait("the served model is announced", lambda: len(rig.releases) == 1)
    release = rig.registry.last()
    assert release is not None
    key, value = {**sound(rig), RELEASES: (rig.name.encode(), release.encode())}[topic]
    send(rig.broker, topic_name(rig.name, topic), key, mangled(value, COUNT, seed=len(topic)))
    numbers = iter(range(1000))

    def started() -> bool:
        assert not stopped.is_set()
        rig.window(next(numbers), model, 2)
        return bool(rig.flower.started)

    wait_for("the controller acts on sound windows", started, 60)


def send(broker: BrokerSettings, topic: str, key: bytes, values: Iterable[bytes | None]) -> None:
    """As anybody may who can reach the broker: tombstones too."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    try:
        for value in values:
            producer.send(topic, key=key, value=value)
        producer.flush(30)
    finally:
        producer.close()
