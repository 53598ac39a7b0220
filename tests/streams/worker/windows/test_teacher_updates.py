"""The teacher that the server offers, on a real Kafka: waited for, changed, refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.bootstrap.replacement import next_teacher
from federation.registry import publisher
from federation.registry.registry import Registry
from streams.contract.artifact import WEIGHTS, Artifact, Manifest, pack
from streams.contract.decisions import MAX_BYTES, Ref, Release, sign
from streams.contract.errors import UsageError
from streams.contract.topics import ARTIFACTS, RELEASES, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.settings import BrokerSettings
from streams.learning.learning import build_teacher, to_safetensors
from streams.learning.teacher import Teacher
from streams.runtime.trust import create_key, load_private_key
from streams.worker.settings import WorkerSettings
from streams.worker.teacher_source import TeacherSource
from tests.federation.controller.test_bad_messages import deliver, send
from tests.rig.asked import asked
from tests.rig.made_up.mangled import mangled
from tests.rig.made_up.tiny_task import task as tiny
from tests.rig.processes.workers import Fleet, batch, fleet, stop, until, write_teacher

pytestmark = pytest.mark.kafka
D = "d0"
COUNT = 400


@pytest.fixture
def served(kafka: BrokerSettings, tmp_path: Path) -> Iterator[Fleet]:
    with fleet(kafka, tmp_path, idle_close_s=0.5) as made:
        made.options["teacher"] = None
        ensure_topics(kafka, topic_specs(made.task.id, made.partitions))
        yield made


@pytest.fixture
def registry(served: Fleet) -> Registry:
    key = load_private_key(served.folder / "key.pem")
    made = Registry(served.folder / "registry", served.task.name, 1, [key.public_key()])
    made.add_teacher((served.folder / "teacher.tw").read_bytes())
    return made


def kept(served: Fleet, data: bytes) -> Path:
    """A file of a teacher's weights."""
    path = served.folder / "w.safetensors"
    path.write_bytes(data)
    return path


def replaced(served: Fleet, registry: Registry, key: Ed25519PrivateKey, path: Path) -> Artifact:
    return registry.add_teacher(next_teacher(served.task, registry, key, path))


def offer(served: Fleet, registry: Registry, key: Ed25519PrivateKey | None = None) -> Ref:
    """Decide on the kept teacher, and tell of it."""
    key = key or load_private_key(served.folder / "key.pem")
    assert registry.offer_teacher(key, "test")
    told = publisher.announce(served.producer, registry, None)
    assert told is not None
    found = told.decision.standing.teacher
    assert found is not None
    return found


def weights(served: Fleet, seed: int) -> bytes:
    torch.manual_seed(seed)
    return to_safetensors(build_teacher(served.task).state_dict())


def scored_by(served: Fleet) -> dict[int, str]:
    """seq -> the teacher's version."""
    return dict(asked(served.store, "select seq, teacher_model from scores"))


def test_the_teachers_file_of_another_task_is_named(tmp_path: Path) -> None:
    path, key = write_teacher(tiny, tmp_path)
    settings = WorkerSettings(
        task="other.py:task", broker=BrokerSettings.at("127.0.0.1:1"), store=tmp_path / "store",
        workers=tmp_path / "workers", trusted=(key,), teacher=path,
    )  # fmt: skip
    said = f"the teacher {path}: task: it is for task tiny version 1, not other version 1: name"
    with pytest.raises(UsageError, match=said):
        TeacherSource(replace(tiny, name="other"), settings)


def test_a_worker_waits_for_a_teacher_and_changes_it_between_two_commits(
    served: Fleet, registry: Registry
) -> None:
    worker = served.start()
    until(lambda: "waiting for a teacher" in served.log("w0"), "it says what it waits for")
    first = offer(served, registry)
    served.ready("w0", [0, 1])
    served.send(batch(D, 0, [1, 2, 3], task=served.task))
    served.wait_until_scored()

    # What must not be used is refused, and changes nothing: a stranger's signature, and another
    # history by the same key.
    stranger = create_key(served.folder / "stranger.pem")
    manifest = Manifest(
        kind="teacher", task=served.task.name, task_version=1, number=7, created_us=1, key="",
        files=[],
    )  # fmt: skip
    key = load_private_key(served.folder / "key.pem")
    for signer, data in ((stranger, weights(served, 1)), (key, b"no weights")):
        other = Registry(
            served.folder / f"other-{len(data)}", served.task.name, 1, [signer.public_key()]
        )
        other.add_teacher(pack(manifest, {WEIGHTS: data}, signer))
        offer(served, other, signer)
        what = "not trusted here" if signer is stranger else "replayed"
        until(lambda what=what: what in served.log("w0"), "a refusal")  # type: ignore[misc]

    artifact = replaced(served, registry, key, kept(served, weights(served, 2)))
    assert artifact.model.startswith("2-")
    assert artifact.manifest.base == first.model
    offer(served, registry)
    changed = f"teacher changed: {first.model} -> {artifact.model}"
    until(lambda: changed in served.log("w0"), "swap")
    served.send(batch(D, 3, [11, 12], task=served.task))
    served.wait_until_scored()
    assert scored_by(served) == {
        **dict.fromkeys(range(3), first.model), **dict.fromkeys((3, 4), artifact.model)
    }  # fmt: skip
    assert stop(worker) == 0

    # A restart begins with the teacher that is offered.
    served.start()
    served.send(batch(D, 5, [21], task=served.task))
    served.wait_until_scored()
    assert scored_by(served)[5] == artifact.model

    # Weights that do not fit are refused by name.
    bad = registry.add_teacher(pack(manifest, {WEIGHTS: b"no weights"}, key))
    offer(served, registry)
    until(lambda: f"teacher {bad.model} refused" in served.log("w0"), "a refusal")
    served.send(batch(D, 6, [31], task=served.task))
    served.wait_until_scored()
    assert scored_by(served)[6] == artifact.model


def spoil_releases(served: Fleet, registry: Registry) -> str:
    """The last record is one that no other can be taken for: what the worker says of it."""
    key, name = load_private_key(served.folder / "key.pem"), served.task.id
    told = Release.decode(served.read(RELEASES)[-1].value)
    topic = topic_name(name, RELEASES)
    send(served.broker, topic, name.encode(), mangled(told.encode(), COUNT, seed=7))
    other = sign(told.decision.replace(task_version=9), key)
    served.producer.put(topic, name.encode(), other.encode())
    return "the decision is about version 9"


def spoil_artifacts(served: Fleet, registry: Registry) -> str:
    """They are chunks of a teacher that is offered: what the worker says of it."""
    key, name = load_private_key(served.folder / "key.pem"), served.task.id
    model = replaced(served, registry, key, kept(served, weights(served, 2))).model
    assert registry.offer_teacher(key, "test")
    said = registry.last()
    assert said is not None
    delivery = deliver(served.broker, name, model, registry.read_teacher(), COUNT)
    said = said.replace(deliveries=[delivery])
    served.producer.put(topic_name(name, RELEASES), name.encode(), said.encode())
    return f"teacher {model} refused"


def test_a_running_worker_passes_over_what_it_cannot_read(
    served: Fleet, registry: Registry
) -> None:
    """It scores with the teacher that it has, and takes the next sound one."""
    first = offer(served, registry)
    worker = served.start()
    served.ready("w0", [0, 1])
    for spoil in (spoil_releases, spoil_artifacts):
        said = spoil(served, registry)
        until(lambda said=said: said in served.log("w0"), said)  # type: ignore[misc]
    served.send(batch(D, 0, [1, 2, 3], task=served.task))
    served.send(batch(D, 3, [11, 12], task=served.task))
    served.wait_until_scored()
    assert scored_by(served) == dict.fromkeys(range(5), first.model)
    assert "teacher changed" not in served.log("w0")
    assert "trying again" not in served.log("w0")  # nothing was raised that is not expected
    key = load_private_key(served.folder / "key.pem")
    replaced(served, registry, key, kept(served, weights(served, 3)))
    third = offer(served, registry)
    changed = f"teacher changed: {first.model} -> {third.model}"
    until(lambda: changed in served.log("w0"), "the next sound one is taken")
    assert worker.poll() is None
    assert stop(worker) == 0


def test_weights_that_do_not_fit_are_not_kept(served: Fleet, registry: Registry) -> None:
    key, before = load_private_key(served.folder / "key.pem"), registry.read_teacher()
    for data in (b"", b"garbage", to_safetensors(served.task.build_model().state_dict())):
        with pytest.raises(UsageError, match=r"w\.safetensors (has no weights|does not fit)"):
            replaced(served, registry, key, kept(served, data))
    empty = Registry(served.folder / "empty", served.task.name, 1, [key.public_key()])
    with pytest.raises(UsageError, match="no teacher yet"):
        replaced(served, empty, key, kept(served, weights(served, 1)))
    assert registry.read_teacher() == before


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("larger", f"refused: size: {MAX_BYTES} bytes in 2048 chunks are announced"),
        ("altered", "refused: digest: the bytes do not match the announced digest"),
    ],
)
def test_a_teacher_whose_delivery_is_not_as_decided_is_not_opened(
    served: Fleet, registry: Registry, caplog: pytest.LogCaptureFixture, how: str, says: str
) -> None:
    key, name = load_private_key(served.folder / "key.pem"), served.task.id
    assert registry.offer_teacher(key, "test")
    told = publisher.announce(served.producer, registry, None)
    assert told is not None
    [delivery], data = told.deliveries, registry.read_teacher()
    parts = publisher.chunks(data[:-1] + bytes([data[-1] ^ 1]))
    topic = topic_name(name, ARTIFACTS)
    at = [served.producer.put(topic, delivery.sha256.encode(), *part) for part in parts]
    change = {"size": MAX_BYTES, "chunks": 2048} if how == "larger" else {"offset": at[0]}
    spoiled = told.replace(deliveries=[delivery.replace(**change)])
    served.producer.put(topic_name(name, RELEASES), name.encode(), spoiled.encode())
    taken: list[Teacher] = []
    trusted = (served.folder / "key.pub",)
    settings = WorkerSettings(name, served.broker, served.store, trusted)
    source = TeacherSource(served.task, settings)
    source.follow(taken.append)
    until(lambda: says in caplog.text, says)
    assert source.stop(30)
    assert taken == []
