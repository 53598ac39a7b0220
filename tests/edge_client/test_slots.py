"""Two slots: what is installed is verified first, what is broken leaves the old version on."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client import slots as slots_module
from edge_client.inference import Engine
from edge_client.slots import Slots
from federation.export import export_graph
from streams.contract.errors import ArtifactError
from streams.contract.learning import predict
from streams.contract.signing import create_key
from tests.edge_client.models import TINY, artifact, plain, segments, tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def graph() -> bytes:
    return export_graph(tiny, plain(1))


@pytest.fixture
def key(tmp_path: Path) -> Ed25519PrivateKey:
    return create_key(tmp_path / "keys" / "signing.pem")


@pytest.fixture
def versions(key: Ed25519PrivateKey, graph: bytes) -> list[bytes]:
    """Three model versions, numbered from 1; each has its number as seed."""
    return [artifact(key, plain(n), n, graph=graph) for n in (1, 2, 3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "slots"


def opened(folder: Path, key: Ed25519PrivateKey) -> Slots:
    return Slots(folder, tiny, [key.public_key()])


def answers_as(engine: Engine | None, seed: int) -> bool:
    assert engine is not None
    inputs = segments(5)
    found = np.stack([engine.run(segment) for segment in inputs])
    return bool(np.allclose(found, predict(plain(seed), inputs), atol=1e-4))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_restart_opens_the_active_one(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes]
) -> None:
    slots = opened(folder, key)
    assert slots.open() is None
    for seed, data in enumerate(versions, 1):
        assert answers_as(slots.install(data), seed)
    again = opened(folder, key)
    assert answers_as(again.open(), 3)
    assert (again.active, again.previous) == (slots.active, slots.previous)
    assert str(again.previous).startswith("2-")
    assert files(folder) == [f"{again.previous}.twa", f"{again.active}.twa", "slots.json"]


def test_installing_the_active_one_again_keeps_the_previous(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes]
) -> None:
    slots = opened(folder, key)
    slots.install(versions[0])
    slots.install(versions[1])
    previous = slots.previous
    assert answers_as(slots.install(versions[1]), 2)
    assert slots.previous == previous
    assert str(previous).startswith("1-")


def refused(data: bytes, what: str, graph: bytes, key: Ed25519PrivateKey) -> bytes:
    """`data`, a sound second version, made wrong in one way."""
    stranger = Ed25519PrivateKey.generate()
    other = {
        "task": dataclasses.replace(tiny, name="other"),
        "version": dataclasses.replace(tiny, version=2),
    }
    end = len(data) - 100
    return {
        "empty": lambda: b"",
        "truncated": lambda: data[:end],
        "cut in the manifest": lambda: data[:40],
        "flipped in the files": lambda: data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :],
        "flipped in the manifest": lambda: data[:60] + bytes([data[60] ^ 1]) + data[61:],
        "signature": lambda: data.replace(signature_of(data), bytes(64)),
        "stranger": lambda: artifact(stranger, plain(2), 2, graph=graph),
        "task": lambda: artifact(key, plain(2), 2, graph=graph, task=other["task"]),
        "task version": lambda: artifact(key, plain(2), 2, graph=graph, task=other["version"]),
        "kind": lambda: artifact(key, plain(2), 2, graph=graph, kind="teacher"),
        "graph": lambda: artifact(key, plain(2), 2, graph=b"not onnx"),
    }[what]()


def signature_of(data: bytes) -> bytes:
    size = int.from_bytes(data[8:12], "little")
    return data[16 + size : 16 + size + 64]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("empty", "truncated"),
        ("truncated", "truncated"),
        ("cut in the manifest", "truncated"),
        ("flipped in the files", "digest"),
        ("flipped in the manifest", None),  # what breaks depends on which byte it is
        ("signature", "signature"),
        ("stranger", "untrusted-key"),
        ("task", "task"),
        ("task version", "task"),
        ("kind", "kind"),
        ("graph", "not-runnable"),
    ],
)
def test_what_does_not_verify_is_refused_and_the_old_version_goes_on(
    folder: Path,
    key: Ed25519PrivateKey,
    versions: list[bytes],
    graph: bytes,
    what: str,
    reason: str | None,
) -> None:
    slots = opened(folder, key)
    slots.install(versions[0])
    before = files(folder), slots.active
    with pytest.raises(ArtifactError) as caught:
        slots.install(refused(versions[1], what, graph, key))
    assert reason in (None, caught.value.reason)
    assert (files(folder), slots.active) == before
    assert answers_as(opened(folder, key).open(), 1)


def test_another_digest_than_the_offered_one_is_refused(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes]
) -> None:
    with pytest.raises(ArtifactError, match="digest"):
        opened(folder, key).install(versions[0], digest="0" * 64)
    assert files(folder) == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_broken_active_file_gives_its_place_to_the_previous(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes], damage: str
) -> None:
    slots = opened(folder, key)
    slots.install(versions[0])
    slots.install(versions[1])
    path = folder / f"{slots.active}.twa"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "flipped" else data[:-9])
    again = opened(folder, key)
    assert answers_as(again.open(), 1)
    assert (str(again.active)[:2], again.previous) == ("1-", None)
    assert answers_as(again.install(versions[1]), 2)  # offered again, it is taken again
    assert answers_as(opened(folder, key).open(), 2)


def test_with_both_files_broken_there_is_no_model(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes]
) -> None:
    slots = opened(folder, key)
    slots.install(versions[0])
    slots.install(versions[1])
    for path in folder.glob("*.twa"):
        path.write_bytes(b"")
    assert opened(folder, key).open() is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"active": 1, "previous": null}', "null"])
def test_a_broken_slots_file_is_no_model_and_no_crash(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes], text: str
) -> None:
    slots = opened(folder, key)
    slots.install(versions[0])
    (folder / "slots.json").write_text(text)
    again = opened(folder, key)
    assert again.open() is None
    assert answers_as(again.install(versions[1]), 2)


def test_a_full_disk_before_the_switch_keeps_the_old_version(
    folder: Path,
    key: Ed25519PrivateKey,
    versions: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = opened(folder, key)
    slots.install(versions[0])
    write = slots_module.write_atomic

    def full(path: Path, data: bytes) -> None:
        if path.name == "slots.json":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(slots_module, "write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        slots.install(versions[1])
    monkeypatch.undo()
    assert str(slots.active).startswith("1-")
    assert answers_as(opened(folder, key).open(), 1)
    assert answers_as(slots.install(versions[1]), 2)


CRASH = """
import os, signal, sys
from pathlib import Path
from edge_client import slots
from streams.contract.signing import load_public_key
from streams.contract.task import load_task
reference, folder, key, data, at = sys.argv[1:]
write = slots.write_atomic
def until(path, data):
    if path.name.endswith(at):
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)
slots.write_atomic = until
found = slots.Slots(Path(folder), load_task(reference), [load_public_key(Path(key))])
found.open()
found.install(Path(data).read_bytes())
"""


@pytest.mark.parametrize("at", [".twa", ".json"])
def test_a_kill_before_a_numbered_step_keeps_the_old_version(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes], tmp_path: Path, at: str
) -> None:
    """Step 2 writes the artifact, step 3 slots.json; a kill in front of either changes nothing."""
    opened(folder, key).install(versions[0])
    (tmp_path / "new.twa").write_bytes(versions[1])
    public = tmp_path / "keys" / "signing.pub"
    argv = [sys.executable, "-c", CRASH, TINY, folder, public, tmp_path / "new.twa", at]
    done = subprocess.run([str(word) for word in argv], cwd=ROOT, env=dict(os.environ), timeout=60)
    assert done.returncode == -signal.SIGKILL
    again = opened(folder, key)
    assert answers_as(again.open(), 1)
    assert json.loads((folder / "slots.json").read_bytes())["active"] == again.active
    again.install(versions[2])
    assert len(list(folder.glob("*.twa"))) == 2  # what the crash left behind is gone
