"""One suite for the places that a registry may lie in: a folder, and a real S3 API."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.registry.registry import Registry, Stale
from streams.contract.artifact import Manifest, pack
from streams.contract.decisions import DesiredState
from streams.contract.errors import ArtifactError, Retryable, UsageError
from streams.runtime.files import FolderStore, ObjectStore, RemoteStore, open_store

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
BUCKET = "s3://models"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return FolderStore(tmp_path / "registry")
    request.getfixturevalue("s3_environ")
    return RemoteStore(f"{BUCKET}/{tmp_path.name}")


def test_files_are_written_read_listed_and_removed(store: ObjectStore) -> None:
    assert store.names("models") == []
    with pytest.raises(FileNotFoundError):
        store.read("models/a")
    for name in ("models/b", "models/a", "deltas/c"):
        store.write(name, name.encode())
    store.write("models/a", b"again")
    assert store.names("models") == ["a", "b"]
    assert store.read("models/a") == b"again"
    store.remove("models/a")
    store.remove("models/a")
    assert store.names("models") == ["b"]


def test_of_many_that_create_a_file_one_has(store: ObjectStore) -> None:
    def create(number: int) -> bool:
        try:
            store.create("history/1", str(number).encode() * 1000)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(create, range(8)))
    assert sum(done) == 1
    assert store.read("history/1") == str(done.index(True)).encode() * 1000
    assert store.names("history") == ["1"]


def test_a_registry_decides_once_and_its_history_is_a_chain(store: ObjectStore) -> None:
    place = store.where
    registry = Registry(place, "tiny", 1, [KEY.public_key()])
    manifest = Manifest(task="tiny", task_version=1, number=1, created_us=1, key="", files=[])
    model = registry.add(pack(manifest, {"weights.safetensors": b"w"}, KEY)).model
    registry.serve(model, KEY, "first")
    last = registry.last()
    registry.decide(KEY, "keys", DesiredState(), last, reason="one")
    with pytest.raises(Stale):
        Registry(place, "tiny", 1, [KEY.public_key()]).decide(KEY, "keys", DesiredState(), last)
    assert [d.seq for d in registry.decisions()] == [1, 2]
    assert registry.models() == [model]
    # a decision that is written again is read again
    first, second = (store.read(f"history/0000000{n}.json") for n in (1, 2))
    store.write("history/00000001.json", first.replace(b"first", b"fisrt"))
    with pytest.raises(ArtifactError, match=r"00000001\.json: signature"):
        registry.last()
    store.write("history/00000001.json", first)
    assert [d.seq for d in registry.decisions()] == [1, 2]
    # one that is put in place of another breaks the chain at the next
    other = Registry(f"{place}-other", "tiny", 1, [KEY.public_key()])
    other.decide(KEY, "keys", DesiredState(), None, reason="another history")
    store.write("history/00000001.json", other.store.read("history/00000001.json"))
    with pytest.raises(ArtifactError, match="decision 2 does not follow"):
        registry.history()
    store.write("history/00000001.json", first)
    store.remove("history/00000002.json")
    store.write("history/00000003.json", second)
    with pytest.raises(ArtifactError, match="holds decision 2"):
        registry.last()


def test_a_store_that_cannot_be_reached_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its address: 412 is also the status of a file that exists."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:412")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    store = open_store(f"{BUCKET}/x")
    for ask in (lambda: store.read("history/1"), lambda: store.create("history/1", b"x")):
        with pytest.raises(Retryable, match=r"s3://models/x cannot be reached"):
            ask()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_place_that_nothing_opens_is_named() -> None:
    with pytest.raises(UsageError, match=r"nothing://there cannot be opened"):
        open_store("nothing://there")


def test_a_files_tag_changes_when_it_is_written_again(store: ObjectStore) -> None:
    assert store.tag("teacher.twa") is None
    store.write("teacher.twa", b"one")
    first = store.tag("teacher.twa")
    assert first is not None
    assert store.tag("teacher.twa") == first
    store.write("teacher.twa", b"two")
    assert store.tag("teacher.twa") != first
