from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.registry.registry import Registry
from streams.contract.artifact import Manifest, key_id, pack, unpack
from streams.contract.errors import ArtifactError, UsageError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MANIFEST = Manifest(task="tiny", task_version=1, number=1, created_us=1, key="", files=[])
FILES = {"weights.safetensors": b"w" * 40, "graph.onnx": b"g" * 9}
DATA = pack(MANIFEST, FILES, KEY)


@pytest.fixture
def empty(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", "tiny", 1, [KEY.public_key()])


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
@settings(max_examples=300)
def test_any_altered_byte_is_refused(at: int, change: int) -> None:
    bad = bytearray(DATA)
    bad[at] ^= change
    with pytest.raises(ArtifactError):
        unpack(bytes(bad), [KEY.public_key()], task="tiny", task_version=1)


@given(st.integers(0, len(DATA) - 1))
def test_any_truncation_is_refused(size: int) -> None:
    with pytest.raises(ArtifactError):
        unpack(DATA[:size], [KEY.public_key()], task="tiny", task_version=1)


def test_versions_are_ordered_by_number(empty: Registry) -> None:
    for number in (10, 2, 1):
        empty.add(pack(MANIFEST.replace(number=number), FILES, KEY))
    assert [model.partition("-")[0] for model in empty.models()] == ["1", "2", "10"]
    assert empty.next_number() == 11


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:30], lambda d: d[:-3] + b"xyz"])
def test_a_file_damaged_on_disk_is_never_a_model(empty: Registry, damage: object) -> None:
    artifact = empty.add(DATA)
    empty.serve(artifact.model, KEY, "a test")
    path = empty.folder / "models" / f"{artifact.model}.twa"
    path.write_bytes(damage(DATA))  # type: ignore[operator]
    with pytest.raises(ArtifactError):
        empty.serving()
    with pytest.raises(ArtifactError):
        empty.serve(artifact.model, KEY, "a test")


def test_a_foreign_signature_is_not_kept(empty: Registry) -> None:
    with pytest.raises(ArtifactError, match="not trusted"):
        empty.add(pack(MANIFEST, FILES, Ed25519PrivateKey.generate()))
    assert empty.models() == []


def test_a_version_under_another_name_is_refused(empty: Registry) -> None:
    artifact = empty.add(DATA)
    path = empty.folder / "models" / f"{artifact.model}.twa"
    path.rename(path.with_name("9-00000000.twa"))
    with pytest.raises(ArtifactError, match="holds model"):
        empty.load("9-00000000")
    for name in ("../secret", "", "1/2"):
        with pytest.raises(ArtifactError):
            empty.load(name)


def test_a_teacher_is_no_model(empty: Registry) -> None:
    teacher = pack(MANIFEST.replace(kind="teacher"), FILES, KEY)
    empty.add_teacher(teacher)
    assert empty.read_teacher() == teacher
    with pytest.raises(ArtifactError, match="a teacher, not a model"):
        empty.add(teacher)


def test_a_key_that_a_decision_names_counts_in_the_registry_too(empty: Registry) -> None:
    """Whoever has read on, and whoever comes later, knows it without a file of it."""
    first = empty.serve(empty.add(DATA).model, KEY, "a test")
    new = Ed25519PrivateKey.generate()
    stranger = pack(MANIFEST.replace(number=2), FILES, new)
    with pytest.raises(ArtifactError, match="not trusted"):
        empty.add(stranger)
    raw = {key_id(new.public_key()): new.public_key().public_bytes_raw().hex()}
    standing = empty.desired().replace(keys=raw)
    later = Registry(empty.place, "tiny", 1, [KEY.public_key()])
    second = empty.decide(KEY, "keys", standing, first)
    model = empty.add(stranger).model
    empty.decide(new, "keys", standing, second)
    for registry in (empty, later, Registry(empty.place, "tiny", 1, [KEY.public_key()])):
        last = registry.last()
        assert last is not None
        assert last.decision.seq == 3
        assert registry.load(model).model == model


@pytest.mark.parametrize(
    ("task", "version", "not_of"), [("other", 1, "1 of other"), ("tiny", 2, "2 of tiny")]
)
def test_the_registry_of_another_task_or_version_says_what_to_do(
    empty: Registry, task: str, version: int, not_of: str
) -> None:
    artifact = empty.add(DATA)
    empty.serve(artifact.model, KEY, "the first model")
    other = Registry(empty.where, task, version, [KEY.public_key()])
    said = f"{empty.where} is of version 1 of task tiny, not {not_of}: name another state folder"
    with pytest.raises(UsageError, match=said):
        other.serving()
