"""Events without an answer: the worker answers with the version that their device would serve."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.registry import publisher
from federation.registry.registry import Registry
from streams.contract.artifact import unpack
from streams.contract.decisions import DesiredState, Ref, rollout_position
from streams.contract.errors import MalformedRecord
from streams.contract.events.json_form import decode_json
from streams.contract.events.records import AGAIN
from streams.contract.topics import topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.settings import BrokerSettings
from streams.learning.onnx_model import OnnxModel
from streams.runtime.trust import load_private_key
from streams.worker.store.tables import DROPS, SCORES
from streams.worker.windows.scoring_step import DeviceModels
from streams.worker.windows.tumbling import FUTURE_S
from tests.rig.asked import asked
from tests.rig.made_up.killed import Killed
from tests.rig.made_up.models import artifact, plain
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.workers import Fleet, batch, device_on, fleet, json_events, stop, until
from tests.streams.worker.kills import until_killed
from tests.streams.worker.model import LATER, Log, MemoryStore, live

KEY = Ed25519PrivateKey.generate()
task = replace(tiny, answer_by="worker")


def version(number: int) -> tuple[Ref, OnnxModel]:
    data = artifact(KEY, plain(number), number)
    found = unpack(data, [KEY.public_key()], task="tiny", task_version=1)
    return Ref.of(found), OnnxModel(tiny, found)


def models(standing: DesiredState, *served: OnnxModel) -> DeviceModels:
    made = DeviceModels(task)
    made.offer(standing, {model.model: model for model in served})
    return made


def unanswered(times: list[float], first: int = 0) -> list[dict[str, object]]:
    left = "outputs", "model"
    rows = json_events(batch("d0", first, times))
    return [{n: value for n, value in row.items() if n not in left} for row in rows]


def put(log: Log, events: object, device: str = "d0") -> None:
    log.messages.append((device.encode(), json.dumps(events).encode(), []))


def test_only_a_task_whose_worker_answers_takes_events_without_an_answer() -> None:
    value = json.dumps(unanswered([1])).encode()
    with pytest.raises(MalformedRecord, match="give either outputs or answer"):
        decode_json(tiny, b"d0", value, "kafka-0-0", 0)
    (found,) = decode_json(task, b"d0", value, "kafka-0-0", 0)
    assert found.count == 1
    named = json.dumps([unanswered([1])[0] | {"model": "mine"}]).encode()
    with pytest.raises(MalformedRecord, match="model: give it with its answer"):
        decode_json(task, b"d0", named, "kafka-0-0", 0)


def test_answers_are_those_of_the_version_that_the_device_would_serve() -> None:
    (stable, one), (offered, other) = version(1), version(2)
    names = [f"d{n}" for n in range(20)]
    share = float(np.median([rollout_position("tiny", name) for name in names]))
    served = models(DesiredState(stable=stable, offered=offered, share=share), one, other)
    log, store = Log(), MemoryStore()
    for name in names:
        put(log, [*unanswered([1, 2]), *json_events(batch(name, 0, [3]))], name)
    live(log, store, LATER, of=task, models=served)
    rows = store.tables[SCORES].to_pylist()
    segments = np.stack([row["segment"] for row in json_events(batch("d0", 0, [1, 2]))])
    segments = segments.reshape(-1, *tiny.segment_shape).astype(np.float32)
    wanted = {model.model: model.run(segments) for model in (one, other)}
    found: set[str] = set()
    for name in names:
        first, second, own = sorted(
            (r for r in rows if r["device"] == name), key=lambda r: r["seq"]
        )
        assert own["model"] == "1-aaaaaaaa"
        assert (
            first["model"]
            == second["model"]
            == (offered if rollout_position("tiny", name) < share else stable).model
        )
        answers = np.array([first["outputs"], second["outputs"]], np.float32)
        np.testing.assert_allclose(answers, wanted[first["model"]], atol=1e-6)
        found.add(first["model"])
    assert found == {stable.model, offered.model}


def test_an_event_that_no_version_can_answer_is_parked_and_is_answered_when_it_is_sent_again() -> (
    None
):
    log, store = Log(), MemoryStore()
    put(log, unanswered([1]))
    live(log, store, LATER, of=task, models=models(DesiredState()))
    (letter,) = [m for m in log.published if m.topic.endswith("dead-letters")]
    assert b"no version is served" in dict(letter.headers)["detail"]
    assert store.tables[DROPS].num_rows == 1
    again = [(n[9:], v) for n, v in letter.headers if n.startswith("original-")]
    log.messages.append((letter.key, letter.value, [*again, (AGAIN, b"1")]))
    stable, model = version(1)
    live(log, store, LATER, of=task, models=models(DesiredState(stable=stable), model))
    assert store.tables[SCORES].column("model").to_pylist() == [stable.model]


def test_events_are_answered_once_over_crashes() -> None:
    log, store = Log(), MemoryStore()
    put(log, unanswered([1, 2, 3, FUTURE_S]))
    versions = [version(number) for number in (1, 2)]
    for (ref, model), crash_at in zip(versions, ("worker-step-2", ""), strict=True):
        with contextlib.suppress(Killed):
            served = models(DesiredState(stable=ref), model)
            live(log, store, LATER, of=task, models=served, crash_at=crash_at)
    assert set(store.tables[SCORES].column("model").to_pylist()) == {versions[0][0].model}
    assert store.tables[SCORES].num_rows == 4


@pytest.fixture
def served(kafka: BrokerSettings, tmp_path: Path) -> Iterator[Fleet]:
    with fleet(kafka, tmp_path, idle_close_s=0.5, answer_by="worker") as made:
        ensure_topics(kafka, topic_specs(made.task.id, made.partitions))
        yield made


def serve(served: Fleet, registry: Registry, number: int) -> str:
    key, own = load_private_key(served.folder / "key.pem"), served.task
    torch.manual_seed(number)
    model = registry.add(artifact(key, plain(number), number, task=own)).model
    registry.serve(model, key, "test")
    assert publisher.announce(served.producer, registry, None) is not None
    return model


@pytest.mark.kafka
def test_a_worker_answers_with_what_is_released_over_kills(served: Fleet) -> None:
    key = load_private_key(served.folder / "key.pem")
    registry = Registry(served.folder / "registry", served.task.name, 1, [key.public_key()])
    worker = served.start(failpoint="worker-step-2:2")
    until(lambda: "waiting for a version to answer with" in served.log("w0"), "what it waits for")
    first, sent = serve(served, registry, 1), 0

    def send() -> None:
        nonlocal sent
        events = json.dumps(unanswered([float(sent + i) for i in range(10)])).encode()
        served.producer.put(f"{served.task.id}.events", device_on(0).encode(), events, [])
        sent += 10

    until_killed(served, worker, send)
    again = served.start()
    until(lambda: served.count() == sent, "all are scored")
    second = serve(served, registry, 2)
    until(lambda: f"answered by {second}" in served.log("w0"), "the next version")
    send()
    until(lambda: served.count() == sent, "all are scored")
    assert stop(again) == 0
    rows = asked(served.store, "select model, count(*) from scores group by model order by 1")
    assert rows == [(first, sent - 10), (second, 10)]
    assert len(set(served.scored())) == sent
