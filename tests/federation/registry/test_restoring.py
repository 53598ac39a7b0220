"""A registry that was lost and restored from a backup continues what devices have accepted."""

import shutil
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kafka import KafkaAdminClient

from federation.registry import key_rotation, manual, publisher
from federation.registry.catalog import verify
from federation.registry.registry import Registry
from streams.contract.artifact import key_id
from streams.contract.decisions import Release
from streams.contract.errors import ArtifactError
from streams.contract.task import Task, load_task
from streams.contract.topics import topic_specs
from streams.kafka.admin import ensure_topics
from streams.kafka.producer import Producer
from streams.kafka.settings import BrokerSettings
from streams.runtime.trust import Acceptance
from tests.rig.made_up.own_task import own_task
from tests.rig.made_up.registries import NEW, OLD, model, registry_in, serve
from tests.rig.processes.polling import until
from tests.rig.unwrap import unwrap

pytestmark = pytest.mark.kafka


@dataclass
class Fleet:
    """The registry and the topics of a task, and a device that follows them."""

    task: Task
    registry: Registry
    broker: BrokerSettings
    producer: Producer
    device: Acceptance
    announced: Release | None = None

    def announce(self) -> None:
        self.announced = publisher.announce(self.producer, self.registry, self.announced)

    def follow(self, device: Acceptance) -> None:
        """Read `releases` from its beginning; the registry's last decision is accepted then."""
        for release in publisher.releases(publisher.read_releases(self.broker, self.task.id)):
            with suppress(ArtifactError):  # an earlier one
                device.accept(release)
        last = unwrap(self.registry.last())
        assert device.seq == last.decision.seq
        assert device.accept(last) == last.decision

    def all_follow(self) -> int:
        """The last decision is accepted by the device and by a new one; return its number."""
        self.announce()
        for device in (self.device, self.new_device()):
            self.follow(device)
        return unwrap(self.registry.last()).decision.seq

    def new_device(self) -> Acceptance:
        """Also one that was wiped."""
        return Acceptance(None, self.task, [OLD.public_key()])

    def lose_registry(self, backup: Path) -> None:
        """The registry becomes the backup."""
        shutil.rmtree(self.registry.folder)
        shutil.copytree(backup, self.registry.folder)
        self.registry = registry_in(self.registry.folder, self.task.name)

    def start_controller(self, key: Ed25519PrivateKey = OLD) -> None:
        self.announced = publisher.take_up(self.broker, self.registry, key.public_key())
        self.announce()


@pytest.fixture
def fleet(kafka: BrokerSettings, tmp_path: Path) -> Iterator[Fleet]:
    """Two versions were served, and the second one is."""
    task = load_task(own_task(tmp_path))
    ensure_topics(kafka, topic_specs(task.id, 1))
    registry = registry_in(tmp_path / "registry", task.name)
    for number in (1, 2):
        serve(registry, model(registry, number))
    with closing(Producer(kafka)) as producer:
        device = Acceptance(None, task, [OLD.public_key()])
        made = Fleet(task, registry, kafka, producer, device)
        made.announce()
        made.follow(device)
        yield made


@pytest.fixture
def backup(fleet: Fleet, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fleet.registry.folder, tmp_path / "backup"))


@pytest.mark.parametrize("there", [2, 3])  # the third one after a crash in the middle of step 3
def test_decisions_and_versions_that_a_backup_lacks_are_taken_from_the_topics(
    fleet: Fleet, backup: Path, there: int
) -> None:
    teacher = model(fleet.registry, 3, kind="teacher")
    fleet.registry.offer_teacher(OLD, "a better one")
    third = model(fleet.registry, 4)
    serve(fleet.registry, third)
    fleet.announce()
    fleet.follow(fleet.device)
    lost = fleet.registry.history()
    fleet.lose_registry(backup)
    for release in lost[2:there]:
        fleet.registry.append(release)
    assert len(fleet.registry.history()) == there

    fleet.start_controller()
    assert [each.digest for each in fleet.registry.history()] == [each.digest for each in lost]
    assert verify(fleet.registry).problems == []
    assert unwrap(fleet.registry.teacher()).digest == teacher.digest
    assert unwrap(fleet.registry.serving()).digest == third.digest
    manual.roll_back(fleet.registry, OLD)
    assert fleet.all_follow() == 5


def test_a_decision_beside_a_lost_one_stops_the_controller_until_it_is_removed(
    fleet: Fleet, backup: Path
) -> None:
    manual.promote(fleet.registry, OLD, fleet.registry.models()[0])
    fleet.announce()
    fleet.follow(fleet.device)
    fleet.lose_registry(backup)
    manual.roll_back(fleet.registry, OLD)
    for _ in range(2):  # devices refuse the second one as well
        with pytest.raises(ArtifactError, match=r"decision 3 .*remove history/00000003\.json"):
            fleet.start_controller()
        serve(fleet.registry, model(fleet.registry, 3))
    for name in ("history/00000003.json", "history/00000004.json", "history/00000005.json"):
        fleet.registry.store.remove(name)
    fleet.start_controller()
    manual.promote(fleet.registry, OLD, fleet.registry.models()[1])
    assert fleet.all_follow() == 4


def test_decisions_of_an_earlier_key_are_restored_below_one_of_the_own(
    fleet: Fleet, backup: Path
) -> None:
    key_rotation.trust(fleet.registry, OLD, NEW.public_key())
    key_rotation.hand_over(fleet.registry, NEW)
    key_rotation.revoke(fleet.registry, NEW, key_id(OLD.public_key()))
    fleet.announce()
    fleet.follow(fleet.device)
    lost = fleet.registry.history()
    fleet.lose_registry(backup)
    fleet.start_controller(NEW)
    assert [each.digest for each in fleet.registry.history()] == [each.digest for each in lost]
    fleet.follow(fleet.new_device())


def test_topics_that_were_deleted_and_made_anew_are_filled_from_the_registry(
    fleet: Fleet, kafka: BrokerSettings
) -> None:
    names = [f"{fleet.task.id}.releases", f"{fleet.task.id}.artifacts"]
    with closing(KafkaAdminClient(**kafka.client_options())) as admin:
        admin.delete_topics(names)
        until(lambda: not {*names} & {*admin.list_topics()}, "both topics are gone")
    ensure_topics(kafka, topic_specs(fleet.task.id, 1))
    fleet.start_controller()
    announced = unwrap(fleet.announced)
    assert publisher.lost(kafka, fleet.task.id, announced.deliveries) == []
    assert fleet.all_follow() == 2


def test_another_history_of_the_same_key_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    fleet.registry = registry_in(tmp_path / "other", fleet.task.name)
    serve(fleet.registry, model(fleet.registry, 3))
    with pytest.raises(ArtifactError, match="use the registry that made it"):
        fleet.start_controller()


def test_what_others_announce_restores_nothing(fleet: Fleet, tmp_path: Path) -> None:
    fork = registry_in(tmp_path / "fork", fleet.task.name)
    for release in fleet.registry.history():
        fork.append(release)
    theirs = fork.decide(NEW, "keys", fork.desired(), fleet.registry.last())
    publisher.announce(fleet.producer, fleet.registry, None)
    topic = f"{fleet.task.id}.releases"
    forged = theirs.replace(
        text=theirs.text.replace(key_id(NEW.public_key()), key_id(OLD.public_key()))
    )
    for release in (theirs, forged):
        fleet.producer.put(topic, b"theirs", release.encode())
    fleet.start_controller()
    assert len(fleet.registry.history()) == 2
