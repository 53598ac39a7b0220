"""Two slots: what is installed is verified first, what is broken leaves the old version on."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.inference import slots as slots_module
from edge_client.inference.engine import Engine
from edge_client.inference.slots import Slots
from edge_client.inference.trial import ANSWERS, CRASH_S, TRIAL_S, SlotState
from federation.bootstrap.onnx_export import export_graph
from streams.contract.errors import ArtifactError
from streams.contract.task import Task
from streams.learning.learning import predict
from streams.runtime.key_files import create_key
from tests.rig.made_up.killed import Killed, killed_at
from tests.rig.made_up.models import artifact, plain, segments, tiny


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


def opened(folder: Path, key: Ed25519PrivateKey, task: Task = tiny) -> Slots:
    return Slots(folder, task, [key.public_key()])


def state(folder: Path) -> SlotState:
    return SlotState.decode((folder / "slots.json").read_bytes())


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
    assert str(again.previous).startswith("1-")  # the second had not proved itself
    kept = [f"{again.previous}.twa", f"{again.active}.twa"]
    assert files(folder) == [*kept, "serving", "slots.json"]
    again.close()
    assert files(folder) == [*kept, "slots.json"]


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
        "graph": lambda: artifact(key, plain(2), 2, graph=b"not onnx", probe=b""),
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


def dies_at(step: str, folder: Path, key: Ed25519PrivateKey, data: bytes | None = None) -> None:
    """Open, and install `data`, in a process that is killed at the end of a numbered step."""
    slots = Slots(folder, tiny, [key.public_key()], failpoint=killed_at(step))

    def begin() -> None:
        slots.open()
        if data is not None:
            slots.install(data)

    with pytest.raises(Killed):
        begin()


@pytest.mark.parametrize("step", range(1, 8))
def test_a_kill_at_a_numbered_step_of_installing(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes], step: int
) -> None:
    first = opened(folder, key)
    first.install(versions[0])
    first.close()
    dies_at(f"slots-step-{step}", folder, key, versions[1])
    again = opened(folder, key)
    assert answers_as(again.open(), 1 if step < 5 else 2)
    assert not (folder / "trying").exists()
    found = state(folder)
    assert found.active == again.active
    assert found.previous == (None if step < 5 else first.active)
    # the first one is blamed where it was served and nothing was tried, the second once it was
    assert len(found.crashes_us) == (0 if step in (2, 5) else 1)
    if step == 2:
        assert [why.partition(":")[0] for why in again.refused.values()] == ["died"]
        with pytest.raises(ArtifactError, match=r"refused: 2-.*died"):
            again.install(versions[1])
    else:
        assert again.refused == {}
        assert answers_as(again.install(versions[1]), 2)
    again.install(versions[2])
    assert len(list(folder.glob("*.twa"))) == 2  # what the crash left behind is gone


@pytest.mark.parametrize("step", range(1, 5))
def test_a_kill_at_a_numbered_step_of_going_back(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes], step: int
) -> None:
    slots = opened(folder, key)
    slots.install(versions[0])
    slots.install(versions[1])
    for _ in range(2):
        opened(folder, key).open()  # each leaves the marker of a process that died
    dies_at(f"back-step-{step}", folder, key)
    again = opened(folder, key)
    assert answers_as(again.open(), 1)
    assert (again.active, again.previous) == (slots.previous, None)
    assert list(again.refused) == [slots.active]


def test_three_crashes_in_time_bring_the_previous_back(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes]
) -> None:
    slots = opened(folder, key)
    slots.install(versions[0])
    bad = slots.install(versions[1]).model
    for crashes in (1, 2):  # a process that died is one that did not close
        assert answers_as(opened(folder, key).open(), 2)
        assert len(state(folder).crashes_us) == crashes
    back = opened(folder, key)
    assert answers_as(back.open(), 1)
    assert (back.active, back.previous) == (slots.previous, None)
    assert back.refused == {bad: "crashed: 3 times within 600 s"}
    assert not (folder / f"{bad}.twa").exists()
    with pytest.raises(ArtifactError, match="refused"):
        back.install(versions[1])
    for _ in range(5):  # what was gone back to has nothing behind it
        assert answers_as(opened(folder, key).open(), 1)
    back.install(versions[2])
    assert list(state(folder).refused) == [bad]


def test_clean_ends_and_crashes_far_apart_bring_nothing_back(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes]
) -> None:
    slots = opened(folder, key)
    slots.install(versions[0])
    slots.install(versions[1])
    slots.close()
    for _ in range(5):
        again = opened(folder, key)
        assert answers_as(again.open(), 2)
        again.close()
    for n in range(5):
        wall = lambda n=n: 1e9 + n * (CRASH_S + 1)  # type: ignore[misc]  # noqa: E731
        again = Slots(folder, tiny, [key.public_key()], wall=wall)
        assert answers_as(again.open(), 2)


def test_a_version_is_confirmed_by_time_and_answers_and_then_not_blamed(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes]
) -> None:
    now = 0.0
    slots = Slots(folder, tiny, [key.public_key()], clock=lambda: now)
    slots.install(versions[0])
    engine = slots.install(versions[1])
    engine.latencies.extend([0.001] * (ANSWERS - 1))
    now = TRIAL_S
    slots.check_trial()
    assert not slots.confirmed
    engine.latencies.append(0.001)
    now = TRIAL_S - 1
    slots.check_trial()
    assert not slots.confirmed
    now = TRIAL_S
    slots.check_trial()
    assert slots.confirmed
    engine.latencies.extend([9.0] * ANSWERS)
    slots.check_trial()
    for _ in range(5):
        again = opened(folder, key)
        assert answers_as(again.open(), 2)
        assert again.confirmed
    again.install(versions[2])
    assert (again.previous, again.confirmed) == (engine.model, False)


def test_answers_that_come_too_late_bring_the_previous_back(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes]
) -> None:
    task = dataclasses.replace(tiny, latency_budget_ms=2.0)
    slots = opened(folder, key, task)
    first = slots.install(versions[0])
    first.latencies.extend([1.0] * ANSWERS)
    slots.check_trial()
    assert slots.engine is first  # there is nothing to go back to
    second = slots.install(versions[1])
    second.latencies.extend([1.0] * (ANSWERS - 1))
    slots.check_trial()
    assert slots.engine is second  # too few to tell
    second.latencies.extend([0.001] * ANSWERS)
    slots.check_trial()
    assert slots.engine is second
    second.latencies.extend([0.0021] * 10)
    slots.check_trial()
    assert answers_as(slots.engine, 1)
    assert slots.refused == {second.model: "late: p99 of 200 answers is 2.1 ms, 2 are allowed"}
    assert answers_as(opened(folder, key).open(), 1)


def test_what_fails_its_self_test_is_refused_over_restarts(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes], graph: bytes
) -> None:
    slots = opened(folder, key)
    slots.install(versions[0])
    bad = artifact(key, plain(2), 2, graph=graph, lacking=("4.bias",))
    with pytest.raises(ArtifactError, match="self-test"):
        slots.install(bad)
    again = opened(folder, key)
    assert answers_as(again.open(), 1)
    ((model, reason),) = again.refused.items()
    assert (model[:2], reason.partition(":")[0]) == ("2-", "self-test")
    with pytest.raises(ArtifactError, match=r"refused: 2-.*self-test"):
        again.install(bad)


def test_without_a_sound_previous_version_there_is_no_going_back(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes]
) -> None:
    slots = opened(folder, key)
    slots.install(versions[0])
    model = slots.install(versions[1]).model
    (folder / f"{slots.previous}.twa").write_bytes(b"")
    assert not slots.go_back(model, "late: by a test")
    assert (slots.active, slots.previous, slots.refused) == (model, None, {})
    assert answers_as(slots.engine, 2)
    for _ in range(5):
        assert answers_as(opened(folder, key).open(), 2)


def test_a_full_disk_does_not_keep_a_device_from_going_back(
    folder: Path,
    key: Ed25519PrivateKey,
    versions: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = opened(folder, key)
    slots.install(versions[0])
    slots.install(versions[1])

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slots_module, "write_atomic", full)
    again = opened(folder, key)
    assert answers_as(again.open(), 2)
    assert again.go_back(str(again.active), "late: by a test")
    assert answers_as(again.engine, 1)


@pytest.mark.parametrize("name", ["serving", "trying"])
@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"../../x", b"9" * 99, b"1-0123456"])
def test_a_broken_marker_blames_nobody(
    folder: Path, key: Ed25519PrivateKey, versions: list[bytes], name: str, text: bytes
) -> None:
    slots = opened(folder, key)
    slots.install(versions[0])
    slots.install(versions[1])
    (folder / "serving").unlink()
    (folder / name).write_bytes(text)
    again = opened(folder, key)
    assert answers_as(again.open(), 2)
    assert (state(folder).crashes_us, again.refused) == ([], {})
