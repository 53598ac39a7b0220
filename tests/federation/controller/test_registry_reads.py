"""A controller looks at its registry every two seconds: what has not changed is not read again, in
a folder and from S3."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.controller.controller import Controller
from federation.controller.flwr_cli import Flwr, Submission
from federation.registry.registry import Registry
from federation.rollout.rollout import Plan, Rollout
from federation.rollout.window_history import WindowHistory
from streams.contract.errors import ArtifactError
from streams.contract.task import load_task
from streams.fleet.view import FleetView
from streams.kafka.settings import BrokerSettings
from streams.runtime.key_files import create_key
from streams.runtime.object_store import FolderStore, RemoteStore
from tests.fakes.own_task import own_task
from tests.federation.registries import controller_settings, model, serve, wait
from tests.federation.rounds.test_run import FakeKafka

LOOKS = 5


@dataclass
class Rig:
    controller: Controller
    registry: Registry  # as another process has it
    key: Ed25519PrivateKey
    requests: Counter[str]
    kafka: FakeKafka = field(default_factory=FakeKafka)

    def look(self, times: int = 1) -> Counter[str]:
        """The requests to the store of so many looks."""
        self.requests.clear()
        for _ in range(times):
            self.controller.announce(self.kafka)
        return Counter(self.requests)


@pytest.fixture(params=["folder", "s3"])
def rig(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    place = str(tmp_path / "registry")
    if request.param == "s3":
        request.getfixturevalue("s3_environ")
        place = f"s3://models/{tmp_path.name}"
    reference = own_task(tmp_path)
    task, key_path = load_task(reference), tmp_path / "signing.pem"
    key = create_key(key_path)
    registry = Registry(place, task.name, 1, [key.public_key()])
    for number in range(1, 4):
        serve(registry, model(registry, number, key), key)
    model(registry, 1, key, kind="teacher")
    broker = BrokerSettings(bootstrap="127.0.0.1:1")
    submission = Submission(Flwr("flwr", "tidewheel"), tmp_path)
    settings = controller_settings(
        reference, broker, tmp_path, submission, key_path, registry=place
    )
    requests: Counter[str] = Counter()
    store = FolderStore if request.param == "folder" else RemoteStore
    for what in ("read", "tags", "tag"):
        real = getattr(store, what)

        def counted(self: object, name: str, what: str = what, real: object = real) -> object:
            requests[f"{what} {name}"] += 1
            return real(self, name)  # type: ignore[operator]

        monkeypatch.setattr(store, what, counted)
    return Rig(Controller(settings, task), registry, key, requests)


def test_a_look_at_what_has_not_changed_is_two_requests_and_reads_nothing(rig: Rig) -> None:
    rig.look()
    asked = {"tags history": LOOKS, "tag teacher.twa": LOOKS}
    found = rig.look(LOOKS)
    if isinstance(rig.registry.store, FolderStore):  # whose `tags` asks for each file's
        found = Counter({k: n for k, n in found.items() if not k.startswith("tag history/")})
    assert found == asked


def test_of_a_new_decision_and_a_new_teacher_each_is_read_once(rig: Rig) -> None:
    rig.look()
    last = rig.registry.last()
    assert last is not None
    new = f"read history/{last.decision.seq + 1:08d}.json"
    serve(rig.registry, model(rig.registry, 9, rig.key), rig.key)
    found = rig.look(LOOKS)
    assert found[new] == 1
    assert sum(n for name, n in found.items() if name.startswith("read history")) == 1
    assert found["read teacher.twa"] == 0
    model(rig.registry, 2, rig.key, kind="teacher")
    found = rig.look(LOOKS)
    assert found["read teacher.twa"] == 2  # to decide on it, and to put its bytes on `artifacts`


def test_an_altered_decision_is_read_again_and_refused(rig: Rig) -> None:
    rig.look()
    name = "history/00000002.json"
    sound = rig.registry.store.read(name)
    rig.registry.store.write(name, sound.replace(b"a test", b"a tets"))
    with pytest.raises(ArtifactError, match=f"{name}: signature"):
        rig.look()
    rig.registry.store.write(name, sound)
    found = rig.look()
    assert found["read history/00000001.json"] == 0
    assert rig.controller.announce(rig.kafka) is None


def test_a_candidate_that_waits_for_devices_is_read_once(rig: Rig) -> None:
    base = rig.registry.desired().stable
    assert base is not None
    ref = model(rig.registry, 9, rig.key, base=base.model)
    wait(rig.registry, ref, rig.key)
    rollout, last = Rollout(rig.registry, rig.key, Plan()), rig.registry.last()
    assert last is not None
    rig.requests.clear()
    for _ in range(LOOKS):
        assert rollout.step(last, FleetView("tiny"), WindowHistory()) is None
    assert rig.requests[f"read models/{ref.model}.twa"] == 1
