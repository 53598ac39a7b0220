"""A registry that was lost, made again from a real Kafka: devices take its next decision."""

import hashlib
import random
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from federation.registry import key_rotation, publisher
from federation.registry.audit import verify
from federation.registry.published_chain import chain
from federation.registry.registry import Registry
from federation.registry.restore import Restored, restore, whole
from streams.contract.decisions import Release, decision_key, sign
from streams.contract.errors import ArtifactError, UsageError
from streams.contract.signing import key_id
from streams.contract.task import Task, load_task
from streams.contract.topics import ARTIFACTS, RELEASES, topic_name, topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.reader import Received
from streams.kafka.settings import BrokerSettings
from streams.runtime.acceptance import Acceptance
from tests.fakes.own_task import own_task
from tests.federation.registries import NEW, OLD, STRANGER, model, offer, registry_in, serve, wait


class Lost:
    """A task of its own, with a registry whose fleet has seen two versions and a change of keys."""

    def __init__(self, folder: Path, broker: BrokerSettings) -> None:
        self.folder, self.broker = folder, broker
        self.task: Task = load_task(own_task(folder))
        ensure_topics(broker, topic_specs(self.task.name))
        self.producer = Producer(broker)
        self.before = registry = self.registry("before")
        self.models = [serve_new(registry, 1)]
        self.teacher = model(registry, 1, kind="teacher").model
        registry.offer_teacher(OLD, "a test")
        self.tell(registry)
        key_rotation.trust(registry, OLD, NEW.public_key())
        self.models.append(serve_new(registry, 2, NEW))
        self.tell(registry)
        third = model(registry, 3, NEW, base=self.models[1])
        wait(registry, third, NEW)
        offer(registry, third, NEW)
        self.models.append(third.model)
        self.tell(registry)

    def registry(self, name: str) -> Registry:
        return Registry(self.folder / name, self.task.name, 1, [OLD.public_key()])

    def tell(self, registry: Registry) -> None:
        told = publisher.read_announced(self.broker, self.task.name)
        publisher.announce(self.producer, registry, told)

    def put(self, said: Release, key: bytes) -> None:
        self.producer.put(topic_name(self.task.name, RELEASES), key, said.encode())

    def restored(self, name: str = "after") -> tuple[Registry, Restored]:
        made = self.registry(name)
        return made, restore(made, self.broker, lambda: b"held out")


def serve_new(registry: Registry, number: int, key: Ed25519PrivateKey = OLD) -> str:
    ref = model(registry, number, key)
    serve(registry, ref, key)
    return ref.model


@pytest.fixture
def lost(kafka: BrokerSettings, tmp_path: Path) -> Lost:
    return Lost(tmp_path, kafka)


@pytest.mark.kafka
def test_all_that_was_told_is_there_again(lost: Lost) -> None:
    made, found = lost.restored()
    last = lost.before.last()
    assert last is not None
    assert found == Restored(last.decision.seq, lost.models, lost.teacher)
    assert [r.digest for r in made.history()] == [r.digest for r in lost.before.history()]
    for name in lost.models:
        assert made.read(name) == lost.before.read(name)
    assert made.read_teacher() == lost.before.read_teacher()
    assert made.heldout() == b"held out"
    assert verify(made, {}).problems == []


@pytest.mark.kafka
def test_devices_take_its_next_decision(lost: Lost) -> None:
    device = Acceptance(lost.folder / "accepted.json", lost.task, [OLD.public_key()])
    for said in lost.before.history():
        device.accept(said)
    made, _ = lost.restored()
    fourth = model(made, made.next_number(), NEW)
    assert fourth.model.startswith("4-")
    assert device.accept(serve(made, fourth, NEW)).model == fourth.model
    lost.tell(made)
    assert publisher.read_announced(lost.broker, lost.task.name).digest == made.last().digest  # type: ignore[union-attr]


@pytest.mark.kafka
def test_killed_at_any_write_it_goes_on_when_it_is_done_again(
    lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    for at in range(1, 100):
        made, left = lost.registry(f"killed-{at}"), at

        def counting(real: object) -> object:
            def write(*given: object) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed
                real(*given)  # type: ignore[operator]

            return write

        with monkeypatch.context() as patched:
            for name in ("write", "create"):
                patched.setattr(made.store, name, counting(getattr(made.store, name)))
            try:
                restore(made, lost.broker, lambda: b"held out")
                break
            except Killed:
                pass
        restore(lost.registry(f"killed-{at}"), lost.broker, lambda: b"held out")
        again = lost.registry(f"killed-{at}")
        assert verify(again, {}).problems == []
        assert again.last().digest == lost.before.last().digest  # type: ignore[union-attr]
    assert at > 8


@pytest.mark.kafka
def test_what_was_lost_in_part_is_filled_up(lost: Lost) -> None:
    made, _ = lost.restored()
    for name in ("history/00000002.json", f"models/{lost.models[0]}.twa", "teacher.twa"):
        made.store.remove(name)
    assert verify(made, {}).problems != []
    lost.restored()
    assert verify(lost.registry("after"), {}).problems == []
    made.store.write("history/00000002.json", b"x")
    with pytest.raises(UsageError, match=r"history/00000002.json is damaged: remove it"):
        lost.restored()


@pytest.mark.kafka
def test_a_candidate_that_nobody_was_offered_is_lost(lost: Lost) -> None:
    serve(lost.before, model(lost.before, 4, NEW), NEW)
    fifth = model(lost.before, 5, NEW)
    wait(lost.before, fifth, NEW)
    lost.tell(lost.before)
    made, found = lost.restored()
    assert (found.missing, found.needed) == ([fifth.model], [])
    after = made.desired().model_copy(update={"candidate": None})
    made.decide(NEW, "dropped", after, made.last(), model=fifth.model)
    assert verify(made, {}).problems == []


@pytest.mark.kafka
def test_a_registry_with_decisions_of_its_own_is_not_touched(lost: Lost) -> None:
    other = lost.registry("other")
    serve_new(other, 7)
    before = other.store.names("models")
    with pytest.raises(UsageError, match="has another decision 1: it is not lost"):
        restore(other, lost.broker, lambda: b"")
    assert other.store.names("models") == before
    longer = lost.before
    serve_new(longer, 4, NEW)  # which was not told
    with pytest.raises(UsageError, match="has another decision"):
        restore(longer, lost.broker, lambda: b"")


@pytest.mark.kafka
def test_what_others_put_there_changes_nothing(lost: Lost) -> None:
    forger = Registry(lost.folder / "forged", lost.task.name, 1, [STRANGER.public_key()])
    for number in range(1, 12):
        serve_new(forger, number, STRANGER)
    last = lost.before.last()
    assert last is not None
    for said in forger.history():
        lost.put(said, lost.task.name.encode())
    lost.put(forger.history()[-1], decision_key(lost.task.name, 11))
    topic = topic_name(lost.task.name, ARTIFACTS)
    lost.producer.put(topic, b"f" * 64, b"x", [("index", b"0"), ("chunks", b"1")])
    lost.producer.put(topic, b"f" * 64, b"x", [("index", b"x"), ("chunks", b"1")])
    made, found = lost.restored()
    assert (found.decisions, found.models) == (last.decision.seq, lost.models)
    assert found.strangers == [key_id(STRANGER.public_key())]
    assert verify(made, {}).problems == []


def history_of(folder: Path, *numbers: int) -> list[Release]:
    registry = registry_in(folder)
    for number in numbers:
        serve_new(registry, number)
    return registry.history()


def test_a_gap_in_the_decisions_is_told(tmp_path: Path) -> None:
    first, second, third, fourth = history_of(tmp_path / "before", 1, 2, 3, 4)
    after = registry_in(tmp_path / "after")
    with pytest.raises(ArtifactError, match=r"of tiny, but not the original decision 2:"):
        chain(after, [first, third, third, fourth])
    assert chain(after, [fourth, third, first, second]) == [first, second, third, fourth]
    assert chain(after, []) == []


def test_of_two_histories_the_one_that_was_told_last_counts(tmp_path: Path) -> None:
    """Compaction has left of the older one what the newer one has no number for."""
    older = history_of(tmp_path / "older", 1, 2, 3, 4, 5)
    newer = history_of(tmp_path / "newer", 6, 7, 8)
    after = registry_in(tmp_path / "after")
    assert chain(after, [*older, *newer]) == newer
    assert chain(after, [*older[3:], *newer, newer[-1]]) == newer


def test_an_old_decision_that_is_told_again_hides_nothing(tmp_path: Path) -> None:
    told = history_of(tmp_path / "before", 1, 2, 3, 4)
    assert chain(registry_in(tmp_path / "after"), [*told, told[1]]) == told


@pytest.mark.kafka
def test_without_its_keys_or_decisions_there_is_nothing_to_do(
    lost: Lost, kafka: BrokerSettings
) -> None:
    stranger = Registry(lost.folder / "after", lost.task.name, 1, [STRANGER.public_key()])
    with pytest.raises(UsageError, match="restore the keys"):
        restore(stranger, kafka, lambda: b"")
    assert not (lost.folder / "after").exists()


def test_what_a_revoked_key_signs_later_does_not_follow(tmp_path: Path) -> None:
    registry = registry_in(tmp_path / "before")
    serve(registry, model(registry, 1))
    standing = registry.desired()
    names = {key_id(NEW.public_key()): NEW.public_key().public_bytes_raw().hex()}
    trusted = standing.model_copy(update={"keys": names})
    registry.decide(OLD, "keys", trusted, registry.last())
    revoked = trusted.model_copy(update={"revoked": [key_id(OLD.public_key())]})
    registry.decide(NEW, "keys", revoked, registry.last())
    last = registry.last()
    assert last is not None
    fields = {"seq": 4, "prev": last.digest, "key": key_id(OLD.public_key())}
    stolen = sign(last.decision.model_copy(update=fields), OLD)
    assert chain(registry_in(tmp_path / "after"), [*registry.history(), stolen]) == (
        registry.history()
    )


@pytest.mark.parametrize("namer", [OLD, STRANGER])
def test_what_a_revoked_key_puts_there_without_what_went_before_stops_no_restore(
    tmp_path: Path, namer: Ed25519PrivateKey
) -> None:
    """Nor what a key signs that only the revoked one has named."""
    registry = registry_in(tmp_path / "before")
    serve(registry, model(registry, 1))
    key_rotation.trust(registry, OLD, NEW.public_key())
    key_rotation.hand_over(registry, NEW)
    key_rotation.revoke(registry, NEW, key_id(OLD.public_key()))
    told = registry.history()
    last = told[-1].decision
    raw = {key_id(STRANGER.public_key()): STRANGER.public_key().public_bytes_raw().hex()}
    named = last.standing.model_copy(update={"keys": raw, "revoked": []})
    orphans = [
        sign(last.model_copy(update={"seq": seq, "prev": prev, "standing": named}), key)
        for seq, prev, key in ((20, "a" * 64, OLD), (30, "b" * 64, namer))
    ]
    for seen in ([*told, *orphans], [*orphans, *told]):
        after = registry_in(tmp_path / "after")
        assert chain(after, seen) == told
    lost = sign(last.model_copy(update={"seq": 20, "prev": "a" * 64}), NEW)
    with pytest.raises(ArtifactError, match="not the original decision 19: restore a backup"):
        chain(registry_in(tmp_path / "after"), [*told, *orphans, lost])


@pytest.mark.kafka
def test_a_teacher_that_the_registry_still_has_is_not_missing(lost: Lost) -> None:
    """`artifacts` has lost it."""
    made, _ = lost.restored()
    renewed = model(made, 2, NEW, kind="teacher")
    made.offer_teacher(NEW, "a test")
    for said in made.history()[-1:]:
        lost.put(said, decision_key(lost.task.name, said.decision.seq))
        lost.put(said, lost.task.name.encode())
    made.store.remove("history/00000002.json")
    _, found = lost.restored()
    assert (found.teacher, found.missing, found.needed) == (renewed.model, [], [])
    made.store.write("teacher.twa", b"damaged")
    _, found = lost.restored()
    assert (found.teacher, found.needed) == (None, [renewed.model])


@pytest.mark.kafka
def test_a_decision_of_a_revoked_key_in_the_registry_is_named(lost: Lost) -> None:
    made, _ = lost.restored()
    key_rotation.revoke(made, NEW, key_id(OLD.public_key()))
    lost.tell(made)
    last = made.history()[-1]
    fields = {"seq": last.decision.seq + 1, "prev": last.digest}
    theft = sign(last.decision.model_copy(update=fields), OLD)
    name = f"history/{theft.decision.seq:08d}.json"
    made.store.write(name, theft.encode())
    with pytest.raises(UsageError, match=f"{name} is signed by key .* which is revoked"):
        lost.restored()
    made.store.remove(name)
    assert lost.restored()[1].decisions == last.decision.seq


@given(st.lists(st.binary(max_size=50), max_size=4, unique=True), st.integers(0, 2**32))
def test_chunks_in_any_order_twice_and_among_others_make_what_they_are_of(
    datas: list[bytes], seed: int
) -> None:
    dice, made = random.Random(seed), []
    for data in datas:
        key = hashlib.sha256(data).hexdigest().encode()
        parts = list(publisher.chunks(data, 7))
        for value, headers in [*parts, *dice.sample(parts, len(parts) // 2)]:
            made.append(Received("t", 0, 0, key, value, headers))
    made.append(Received("t", 0, 0, b"f" * 64, b"bad", [("index", b"0"), ("chunks", b"1")]))
    dice.shuffle(made)
    assert sorted(whole(made)) == sorted(datas)
