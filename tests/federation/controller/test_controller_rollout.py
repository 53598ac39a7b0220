"""The controller moves a candidate on a real Kafka: each decision once, whatever dies meanwhile."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from kafka import KafkaAdminClient, TopicPartition

from federation.controller import controller
from federation.registry.publisher import lost, read_announced
from federation.rollout.rollout import Plan
from federation.rollout.stage_policy import StageRules
from streams.contract.decisions import (
    Decision,
    Delivery,
    Release,
    decision_key,
    rollout_position,
)
from streams.contract.topics import ARTIFACTS, FLEET, RELEASES, WINDOWS, topic_name, topic_specs
from streams.contract.window_report import ClassAgreement, ModelWindow
from streams.kafka.admin import ensure_topics
from streams.kafka.artifact_download import Download, fetch
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings
from streams.runtime.failpoints import unarmed
from streams.runtime.trust import create_key
from tests.federation.controller.test_controller import Rig, rig
from tests.rig.made_up.documents import device_state, window_report
from tests.rig.made_up.killed import killed_at
from tests.rig.made_up.registries import model, wait

__all__ = ["rig"]
pytestmark = pytest.mark.kafka
DEVICES = 4
PLAN = Plan((0.25, 1.0), StageRules(minimum_windows=2))


def candidate(rig: Rig, base: str, number: int = 2) -> str:
    """A version that has passed the gate."""
    key = create_key(rig.key_path)
    made = model(rig.registry, number, key, base=base)
    wait(rig.registry, made, key)
    return made.model


def devices(rig: Rig) -> list[str]:
    """They are there; by their place, so that the first is the canary."""
    names = sorted((f"d{i}" for i in range(DEVICES)), key=lambda d: rollout_position(rig.name, d))
    for name in names:
        state = device_state(name, task=rig.name, time_us=time.time_ns() // 1000, active="")
        rig.producer.put(topic_name(rig.name, FLEET), name.encode(), state.encode())
    return names


class Windows:
    """Reports of windows, each later than the one before."""

    def __init__(self, rig: Rig) -> None:
        self._rig, self._made = rig, 0

    def say(self, device: str, model: str, agreeing: int) -> None:
        self._made += 1
        classes = {"slow": ClassAgreement(events=20, agreeing=agreeing)}
        part = ModelWindow(events=20, compared=20, agreeing=agreeing, classes=classes)
        report = window_report(device, self._made * 10, {model: part}, task=self._rig.name)
        topic = topic_name(self._rig.name, WINDOWS)
        self._rig.producer.put(topic, device.encode(), report.encode())


def told(rig: Rig) -> tuple[Decision | None, list[Decision], list[Delivery]]:
    """What `releases` has under the task's name, the decisions under their own keys, and where the
    bytes are."""
    reader = Reader(rig.broker, [topic_name(rig.name, RELEASES)])
    try:
        messages = reader.read_to_end()
    finally:
        reader.close()
    last: Release | None = None
    own: dict[bytes, Decision] = {}
    for message in messages:
        release = Release.decode(message.value)
        if message.key == rig.name.encode():
            last = release
        else:
            assert message.key == decision_key(rig.name, release.decision.seq)
            own[message.key] = release.decision
    decisions = [own[key] for key in sorted(own)]
    return (last.decision, decisions, last.deliveries) if last else (None, decisions, [])


def test_a_candidate_is_offered_judged_and_served_or_taken_back(s3_environ: None, rig: Rig) -> None:
    """With the registry in a bucket; the other tests have it in a folder."""
    place = "s3://models/registry"
    rig.registry = replace(rig.registry, place=place)
    first = rig.serve(1)
    rig.start(plan=PLAN, runs_per_day=0, registry=place)
    names, windows = devices(rig), Windows(rig)
    for name in names:
        for _ in range(20):
            windows.say(name, first, 15)
    rig.wait("the first is announced", lambda: len(rig.releases) == 1)
    second = candidate(rig, first)

    def kinds() -> list[str]:
        devices(rig)
        return [d.kind for d in rig.registry.decisions() if d.model == second]

    rig.wait("it is offered", lambda: "stage" in kinds())

    def better() -> bool:
        share = rig.registry.desired().share
        for name in names:
            offered = rollout_position(rig.name, name) < share or "served" in kinds()
            windows.say(name, second if offered else first, 19 if offered else 15)
        return "served" in kinds()

    rig.wait("it is served", better)
    assert kinds() == ["candidate", "stage", "stage", "served"]

    third = candidate(rig, second, 3)
    rig.wait("the third is offered", lambda: rig.registry.desired().offered is not None)

    def worse() -> bool:
        windows.say(names[0], third, 2)
        devices(rig)
        return third in rig.registry.desired().withdrawn

    rig.wait("it is taken back", worse)
    standing = rig.registry.desired()
    assert standing.stable is not None
    assert standing.stable.model == second
    rig.wait("that is told", lambda: told(rig)[0] == rig.registry.decisions()[-1])
    last, own, deliveries = told(rig)
    assert own == rig.registry.decisions()
    assert last is not None
    assert last.evidence["e_worse"] >= 20
    assert {(d.model, d.base) for d in deliveries} >= {(second, None)}


def test_a_cause_starts_another_run_when_the_version_of_the_first_is_taken_back(rig: Rig) -> None:
    first = rig.serve(1)
    rig.start(plan=PLAN, min_interval_s=0.0)
    rig.wait("the first is announced", lambda: len(rig.releases) == 1)
    names, windows = devices(rig), Windows(rig)
    for name in names:
        for _ in range(20):
            windows.say(name, first, 15)
    rig.wait("it is a cause", lambda: bool(rig.flower.started))
    second = candidate(rig, first)
    rig.say("promoted", "r1", time_us=time.time_ns() // 1000)
    rig.say("finished", "r1", "promoted", time_us=time.time_ns() // 1000)

    def worse() -> bool:
        devices(rig)
        windows.say(names[0], second, 2)
        return second in rig.registry.desired().withdrawn

    rig.wait("it is taken back", worse)

    def again() -> bool:
        for name in names:
            windows.say(name, first, 15)
        return "r2" in rig.reasons("requested")

    rig.wait("the cause counts again", again)
    assert f"agreement with the teacher of {first} is" in rig.reasons("requested")["r2"]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_controller_that_dies_while_it_tells_leaves_it_to_the_next(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    first = rig.serve(1)
    stop = rig.start(plan=PLAN, runs_per_day=0)
    rig.wait("the first is announced", lambda: len(rig.releases) == 1)
    stop.set()
    dies = killed_at(f"release-step-{step}")
    devices(rig)
    second = candidate(rig, first)
    monkeypatch.setattr(controller, "read_failpoint", lambda _environ: dies)
    died = rig.start(plan=PLAN, runs_per_day=0)
    rig.wait("the controller dies", died.is_set)
    monkeypatch.setattr(controller, "read_failpoint", lambda _environ: unarmed)
    rig.start(plan=PLAN, runs_per_day=0)

    def done() -> bool:
        devices(rig)
        last = told(rig)[0]
        return last is not None and last.standing.offered is not None

    rig.wait("it is offered and told", done)
    assert [d.kind for d in rig.registry.decisions()] == ["served", "candidate", "stage"]
    last, own, deliveries = told(rig)
    assert own == rig.registry.decisions()
    assert last == own[-1]
    assert {d.model for d in deliveries} == {first, second}


def announced(rig: Rig, kafka: BrokerSettings, is_it: Callable[[Release], bool]) -> Release:
    """Wait for a release under the task's name."""
    found: list[Release] = []

    def is_there() -> bool:
        release = read_announced(kafka, rig.name)
        found[:] = [release] if release is not None and is_it(release) else []
        return bool(found)

    rig.wait("it is announced", is_there)
    return found[0]


@pytest.mark.parametrize("how", ["deleted", "made anew"])
def test_bytes_that_are_gone_are_sent_again(rig: Rig, kafka: BrokerSettings, how: str) -> None:
    first = rig.serve(1)
    stop = rig.start()
    before = announced(rig, kafka, lambda _: True)
    stop.set()  # its last look would send the bytes again by itself
    rig.wait("it has ended", lambda: rig.name not in {t.name for t in threading.enumerate()})
    topic = topic_name(rig.name, ARTIFACTS)
    admin = KafkaAdminClient(**kafka.client_options())
    if how == "deleted":
        admin.delete_records({TopicPartition(topic, 0): -1})
    else:
        admin.delete_topics([topic])
        rig.wait("it is gone", lambda: topic not in admin.list_topics())
        ensure_topics(kafka, topic_specs(rig.name))
        rig.producer.put(topic, b"other", b"bytes")
    admin.close()
    assert [each.model for each in lost(kafka, rig.name, before.deliveries)] == [first]
    rig.start()
    after = announced(rig, kafka, lambda release: release.deliveries != before.deliveries)
    assert after.decision == before.decision
    found = fetch(kafka, rig.name, Download(after.deliveries[0]), lambda: False)
    assert found == rig.registry.read(first)
    assert not lost(kafka, rig.name, after.deliveries)
