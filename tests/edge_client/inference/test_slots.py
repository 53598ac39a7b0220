"""Two slots: what is installed is verified first, what is broken leaves the old version on."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.inference import slots as slots_module
from edge_client.inference.engine import ANSWERS, CRASH_S, TRIAL_S, Engine, SlotState
from edge_client.inference.slots import Slots
from streams.contract.artifact import PROBE, files_of
from streams.contract.errors import ArtifactError
from streams.contract.task import Task
from streams.learning.learning import predict
from streams.runtime.trust import create_key
from tests.rig.made_up.killed import Killed, killed_at
from tests.rig.made_up.models import artifact, plain, segments, tiny


@dataclass
class Place:
    """A device's folder of slots, and three versions; each has its number as seed."""

    folder: Path
    key: Ed25519PrivateKey
    graph: bytes

    def __post_init__(self) -> None:
        self.versions = [self.made(number) for number in (1, 2, 3)]

    def made(self, number: int = 2, key: Ed25519PrivateKey | None = None, **more: Any) -> bytes:
        return artifact(key or self.key, plain(number), number, **{"graph": self.graph, **more})

    def slots(self, *numbers: int, task: Task = tiny, **more: Any) -> Slots:
        """As a process has them when it starts; these versions are installed."""
        made = Slots(self.folder, task, [self.key.public_key()], **more)
        for number in numbers:
            made.install(self.versions[number - 1])
        return made

    def opened(self) -> Engine | None:
        """What another process answers with."""
        return self.slots().open()

    @property
    def state(self) -> SlotState:
        return SlotState.decode((self.folder / "slots.json").read_bytes())

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def at(tmp_path: Path, graph: bytes) -> Place:
    return Place(tmp_path / "slots", create_key(tmp_path / "keys" / "signing.pem"), graph)


def answers_as(engine: Engine | None, seed: int) -> bool:
    assert engine is not None
    inputs = segments(5)
    found = np.stack([engine.run(segment) for segment in inputs])
    return bool(np.allclose(found, predict(plain(seed), inputs), atol=1e-4))


def test_a_restart_opens_the_active_one(at: Place) -> None:
    slots = at.slots()
    assert slots.open() is None
    for seed, data in enumerate(at.versions, 1):
        assert answers_as(slots.install(data), seed)
    again = at.slots()
    assert answers_as(again.open(), 3)
    assert (again.active, again.previous) == (slots.active, slots.previous)
    assert str(again.previous).startswith("1-")  # the second had not proved itself
    kept = [f"{again.previous}.twa", f"{again.active}.twa"]
    assert at.files == [*kept, "serving", "slots.json"]
    again.close()
    assert at.files == [*kept, "slots.json"]


def signature_of(data: bytes) -> bytes:
    size = int.from_bytes(data[8:12], "little")
    return data[16 + size : 16 + size + 64]


END = -100  # a byte of the files


def replaced(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


# What makes a sound second version wrong, and the reason; of any byte see test_registry.
WRONG: dict[str, tuple[Callable[[Place], bytes], str]] = {
    "empty": (lambda _: b"", "truncated"),
    "truncated": (lambda at: at.versions[1][:END], "truncated"),
    "flipped": (lambda at: replaced(at.versions[1], len(at.versions[1]) + END), "digest"),
    "signature": (
        lambda at: at.versions[1].replace(signature_of(at.versions[1]), bytes(64)), "signature",
    ),
    "stranger": (lambda at: at.made(key=Ed25519PrivateKey.generate()), "untrusted-key"),
    "task": (lambda at: at.made(task=dataclasses.replace(tiny, name="other")), "task"),
    "task version": (lambda at: at.made(task=dataclasses.replace(tiny, version=2)), "task"),
    "kind": (lambda at: at.made(kind="teacher"), "kind"),
    "graph": (lambda at: at.made(graph=b"not onnx", probe=b""), "not-runnable"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_verify_is_refused_and_the_old_version_goes_on(at: Place, what: str) -> None:
    slots, (make, reason) = at.slots(1), WRONG[what]
    before = at.files, slots.active
    with pytest.raises(ArtifactError) as caught:
        slots.install(make(at))
    assert caught.value.reason == reason
    assert (at.files, slots.active) == before
    assert answers_as(at.opened(), 1)


def test_another_digest_than_the_offered_one_is_refused(at: Place) -> None:
    with pytest.raises(ArtifactError, match="digest"):
        at.slots().install(at.versions[0], digest="0" * 64)
    assert at.files == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_broken_active_file_gives_its_place_to_the_previous(at: Place, damage: str) -> None:
    slots = at.slots(1, 2)
    path = at.folder / f"{slots.active}.twa"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "flipped" else data[:-9])
    again = at.slots()
    assert answers_as(again.open(), 1)
    assert (str(again.active)[:2], again.previous) == ("1-", None)
    assert answers_as(again.install(at.versions[1]), 2)  # offered again, it is taken again
    assert answers_as(at.opened(), 2)


def test_with_both_files_broken_there_is_no_model(at: Place) -> None:
    at.slots(1, 2)
    for path in at.folder.glob("*.twa"):
        path.write_bytes(b"")
    assert at.opened() is None


def test_a_full_disk_before_the_switch_keeps_the_old_version(
    at: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = at.slots(1)
    write = slots_module.write_atomic

    def full(path: Path, data: bytes) -> None:
        if path.name == "slots.json":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(slots_module, "write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        slots.install(at.versions[1])
    monkeypatch.undo()
    assert str(slots.active).startswith("1-")
    assert answers_as(at.opened(), 1)
    assert answers_as(slots.install(at.versions[1]), 2)


def dies_at(step: str, at: Place, data: bytes | None = None) -> None:
    """Open, and install `data`, in a process that is killed at the end of a numbered step."""
    slots = at.slots(failpoint=killed_at(step))

    def begin() -> None:
        slots.open()
        if data is not None:
            slots.install(data)

    with pytest.raises(Killed):
        begin()


@pytest.mark.parametrize("step", range(1, 8))
def test_a_kill_at_a_numbered_step_of_installing(at: Place, step: int) -> None:
    first = at.slots(1)
    first.close()
    dies_at(f"slots-step-{step}", at, at.versions[1])
    again = at.slots()
    assert answers_as(again.open(), 1 if step < 5 else 2)
    assert not (at.folder / "trying").exists()
    found = at.state
    assert found.active == again.active
    assert found.previous == (None if step < 5 else first.active)
    # the first one is blamed where it was served and nothing was tried, the second once it was
    assert len(found.crashes_us) == (0 if step in (2, 5) else 1)
    if step == 2:
        assert [why.partition(":")[0] for why in again.refused.values()] == ["died"]
        with pytest.raises(ArtifactError, match=r"refused: 2-.*died"):
            again.install(at.versions[1])
    else:
        assert again.refused == {}
        assert answers_as(again.install(at.versions[1]), 2)
    again.install(at.versions[2])
    assert len(list(at.folder.glob("*.twa"))) == 2  # what the crash left behind is gone


@pytest.mark.parametrize("step", range(1, 5))
def test_a_kill_at_a_numbered_step_of_going_back(at: Place, step: int) -> None:
    slots = at.slots(1, 2)
    for _ in range(2):
        at.opened()  # each leaves the marker of a process that died
    dies_at(f"back-step-{step}", at)
    again = at.slots()
    assert answers_as(again.open(), 1)
    assert (again.active, again.previous) == (slots.previous, None)
    assert list(again.refused) == [slots.active]


def test_clean_ends_and_crashes_far_apart_bring_nothing_back(at: Place) -> None:
    at.slots(1, 2).close()
    for _ in range(5):
        again = at.slots()
        assert answers_as(again.open(), 2)
        again.close()
    for n in range(5):
        again = at.slots(wall=lambda n=n: 1e9 + n * (CRASH_S + 1))
        assert answers_as(again.open(), 2)


def test_a_version_is_confirmed_by_time_and_answers_and_then_not_blamed(at: Place) -> None:
    now = 0.0
    slots = at.slots(1, clock=lambda: now)
    engine = slots.install(at.versions[1])
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
        again = at.slots()
        assert answers_as(again.open(), 2)
        assert again.confirmed
    again.install(at.versions[2])
    assert (again.previous, again.confirmed) == (engine.model, False)


def test_answers_that_come_too_late_bring_the_previous_back(at: Place) -> None:
    slots = at.slots(task=dataclasses.replace(tiny, latency_budget_ms=2.0))
    first = slots.install(at.versions[0])
    first.latencies.extend([1.0] * ANSWERS)
    slots.check_trial()
    assert slots.engine is first  # there is nothing to go back to
    second = slots.install(at.versions[1])
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
    assert answers_as(at.opened(), 1)


def test_what_fails_its_self_test_is_refused_over_restarts(at: Place) -> None:
    slots = at.slots(1)
    bad = at.made(probe=files_of(at.versions[2])[1][PROBE])
    with pytest.raises(ArtifactError, match="self-test"):
        slots.install(bad)
    again = at.slots()
    assert answers_as(again.open(), 1)
    ((model, reason),) = again.refused.items()
    assert (model[:2], reason.partition(":")[0]) == ("2-", "self-test")
    with pytest.raises(ArtifactError, match=r"refused: 2-.*self-test"):
        again.install(bad)


def test_without_a_sound_previous_version_there_is_no_going_back(at: Place) -> None:
    slots = at.slots(1)
    model = slots.install(at.versions[1]).model
    (at.folder / f"{slots.previous}.twa").write_bytes(b"")
    assert not slots.go_back(model, "late: by a test")
    assert (slots.active, slots.previous, slots.refused) == (model, None, {})
    assert answers_as(slots.engine, 2)
    for _ in range(5):
        assert answers_as(at.opened(), 2)


def test_a_full_disk_does_not_keep_a_device_from_going_back(
    at: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at.slots(1, 2)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slots_module, "write_atomic", full)
    again = at.slots()
    assert answers_as(again.open(), 2)
    assert again.go_back(str(again.active), "late: by a test")
    assert answers_as(again.engine, 1)


@pytest.mark.parametrize("name", ["serving", "trying"])
@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"../../x", b"9" * 99, b"1-0123456"])
def test_a_broken_marker_blames_nobody(at: Place, name: str, text: bytes) -> None:
    at.slots(1, 2)
    (at.folder / "serving").unlink()
    (at.folder / name).write_bytes(text)
    again = at.slots()
    assert answers_as(again.open(), 2)
    assert (at.state.crashes_us, again.refused) == ([], {})
