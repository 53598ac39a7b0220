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
from streams.contract.errors import ArtifactError
from streams.contract.task import load_task
from streams.kafka.settings import BrokerSettings
from streams.runtime.key_files import create_key
from streams.runtime.object_store import FolderStore, RemoteStore
from tests.federation.rounds.test_run import FakeKafka
from tests.rig.made_up.own_task import own_task
from tests.rig.made_up.registries import controller_settings, model, serve


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
