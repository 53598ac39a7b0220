"""Whatever is on `windows`, `fleet` and `rounds`, a live controller goes on: it passes over it, and
what is sound is answered."""

import hashlib
from collections.abc import Iterable
from itertools import cycle, islice, repeat

import pytest
from kafka import KafkaProducer

from federation.registry import publisher
from streams.contract.decisions import Delivery
from streams.contract.documents import DeviceState, RoundEvent
from streams.contract.events.messages import Headers
from streams.contract.topics import ARTIFACTS, FLEET, RELEASES, ROUNDS, WINDOWS, topic_name
from streams.contract.window_report import ModelWindow, WindowReport
from streams.kafka.settings import BrokerSettings
from tests.federation.controller.test_controller import Rig, rig
from tests.rig.made_up.mangled import mangled
from tests.rig.processes.polling import until

__all__ = ["rig"]

COUNT = 400
CHUNK = 5_000  # bytes: an artifact of the tests has some


def send(
    broker: BrokerSettings,
    topic: str,
    key: bytes,
    values: Iterable[bytes | None],
    headers: Iterable[Headers] | None = None,
) -> int:
    """As anybody may who can reach the broker: tombstones too. The offset of the first one."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    try:
        sent = [
            producer.send(topic, key=key, value=value, headers=list(more))
            for value, more in zip(values, headers or repeat([]), strict=False)
        ]
        return min(int(each.get(30).offset) for each in sent)
    finally:
        producer.close()


def deliver(broker: BrokerSettings, task: str, model: str, data: bytes, count: int) -> Delivery:
    """Put `count` wrong chunks of an artifact on `artifacts`. The last index comes last, so that
    whoever takes this delivery has read them all when it ends."""
    sha, parts = hashlib.sha256(data).hexdigest(), list(publisher.chunks(data, CHUNK))
    *indices, last = [str(n) for n in range(len(parts))]
    names = islice(cycle([*indices, "x", "-1", "9" * 20]), count)
    headers = [[("index", name.encode())] for name in [*names, last]]
    values = [*mangled(parts[0][0], count, seed=len(parts)), b"0"]
    first = send(broker, topic_name(task, ARTIFACTS), sha.encode(), values, headers)
    return Delivery(model=model, sha256=sha, size=len(data), chunks=len(parts), offset=first)


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
    # It has ended: one that is under way would keep the controller from starting another one.
    event = RoundEvent(run="r9", kind="finished", time_us=5, model="2-b", metrics={"devices": 0.5})
    return {
        FLEET: (b"d0", state.encode()),
        WINDOWS: (b"d0", report.encode()),
        ROUNDS: (b"r9", event.encode()),
    }


@pytest.mark.kafka
def test_a_live_controller_passes_over_what_it_cannot_read(rig: Rig) -> None:
    model = rig.serve(1)
    stopped = rig.start(runs_per_day=1)
    rig.wait("the served model is announced", lambda: len(rig.releases) == 1)
    release = rig.registry.last()
    assert release is not None
    spoilt = {**sound(rig), RELEASES: (rig.name.encode(), release.encode())}
    for topic, (key, value) in spoilt.items():
        send(rig.broker, topic_name(rig.name, topic), key, mangled(value, COUNT, seed=len(topic)))
    numbers = iter(range(1000))

    def started() -> bool:
        assert not stopped.is_set()
        rig.window(next(numbers), model, 2)
        return bool(rig.flower.started)

    until(started, "the controller acts on sound windows", 60)
