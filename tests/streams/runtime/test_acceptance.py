"""Decisions that are accepted, and those that are not: whoever sends them, whenever they come."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.decisions import (
    WITHDRAWN_KEPT,
    ZERO,
    Decision,
    DesiredState,
    Ref,
    Release,
    rollout_position,
    sign,
)
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.signing import key_id
from streams.runtime.acceptance import Acceptance, accepted_file, reset
from tests.rig.made_up.tiny_task import task

OLD = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NEW = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))
KEYS = {key_id(k.public_key()): k.public_key().public_bytes_raw().hex() for k in (OLD, NEW)}


def decision(seq: int, prev: str = ZERO, key: Ed25519PrivateKey = OLD, **more: Any) -> Release:
    about: dict[str, Any] = {
        "task": task.name, "task_version": 1, "seq": seq, "prev": prev, "kind": "served",
        "time_us": 1, "key": "0" * 16, "standing": DesiredState(),
    }  # fmt: skip
    return sign(Decision.of_fields({**about, **more}), key)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return accepted_file(tmp_path, 1)


def opened(path: Path | None) -> Acceptance:
    return Acceptance(None if path is None else path.parent, task, [OLD.public_key()])


def refused(acceptance: Acceptance, release: Release, reason: str) -> None:
    before = acceptance.seq
    with pytest.raises(ArtifactError) as caught:
        acceptance.accept(release)
    assert caught.value.reason == reason
    assert acceptance.seq == before


def test_what_is_accepted_is_remembered_and_an_old_one_does_not_come_back(path: Path) -> None:
    first = decision(1)
    second = decision(2, first.digest)
    device = opened(path)
    device.accept(first)
    device.accept(second)
    for life in (device, opened(path)):
        refused(life, first, "replayed")
        assert life.accept(second).seq == 2  # the same again says nothing new
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_device_that_was_away_takes_the_last(path: Path) -> None:
    device = opened(path)
    device.accept(decision(3))
    assert device.accept(decision(9, "a" * 64)).seq == 9


def test_a_history_that_was_rewritten_does_not_go_on(path: Path) -> None:
    first = decision(1)
    device = opened(path)
    device.accept(first)
    refused(device, decision(2, decision(1, reason="another").digest), "history")
    refused(device, decision(1, reason="another"), "replayed")
    assert device.accept(decision(2, first.digest)).seq == 2


def test_whose_signature_it_is_and_what_it_is_about(path: Path) -> None:
    device = opened(path)
    refused(device, decision(1, key=STRANGER), "untrusted-key")
    refused(device, decision(1, task="other"), "task")
    refused(device, decision(1, task_version=2), "task")
    refused(device, decision(1, format=2), "format")
    sound = decision(1)
    forged = sound.replace(text=sound.text.replace('"seq":1', '"seq":7'))
    refused(device, forged, "signature")
    renamed = sound.text.replace(key_id(OLD.public_key()), key_id(STRANGER.public_key()))
    refused(device, sound.replace(text=renamed), "untrusted-key")
    refused(device, sound.replace(text="{}"), "decision")


def test_keys_are_rotated_by_decisions_and_a_revoked_one_counts_no_more(path: Path) -> None:
    device = opened(path)
    refused(device, decision(1, key=NEW), "untrusted-key")
    first = decision(1, kind="keys", standing=DesiredState(keys=KEYS))
    device.accept(first)
    old = key_id(OLD.public_key())
    second = decision(
        2, first.digest, NEW, kind="keys", standing=DesiredState(keys=KEYS, revoked=[old])
    )
    device.accept(second)
    for life in (device, opened(path)):
        refused(life, decision(3, second.digest, OLD), "revoked")
        assert [key_id(k) for k in life.trusted] == [key_id(NEW.public_key())]
        assert {key_id(k) for k in life.known} == set(KEYS)  # what is installed goes on
    gone = DesiredState(keys=KEYS, revoked=[old])
    assert device.accept(decision(3, second.digest, NEW, standing=gone)).seq == 3


def test_a_key_that_is_named_no_more_is_known_still(path: Path) -> None:
    """What it signed and a device has installed is served after a restart as well."""
    new = key_id(NEW.public_key())
    device = opened(path)
    device.accept(decision(1, kind="keys", standing=DesiredState(keys=KEYS)))
    device.accept(decision(3, "a" * 64, kind="keys", standing=DesiredState(revoked=[new])))
    for life in (device, opened(path)):
        refused(life, decision(5, "a" * 64, NEW), "revoked")
        assert [key_id(k) for k in life.trusted] == [key_id(OLD.public_key())]
        assert {key_id(k) for k in life.known} == set(KEYS)
        life.accept(decision(9, "a" * 64, kind="keys", standing=DesiredState(revoked=[new])))


def test_a_device_that_is_wiped_takes_another_history_by_the_keys_it_knows(path: Path) -> None:
    device = opened(path)
    old = key_id(OLD.public_key())
    device.accept(decision(7, kind="keys", standing=DesiredState(keys=KEYS, revoked=[old])))
    refused(device, decision(1, key=NEW, reason="of another registry"), "replayed")
    reset(path.parent)
    refused(opened(path), decision(1), "revoked")
    assert opened(path).accept(decision(1, key=NEW, reason="of another registry")).seq == 1
    path.write_bytes(b"garbage")
    reset(path.parent)
    assert not path.exists()
    reset(path.parent)


def test_a_key_under_another_ones_name_does_not_take_its_place(path: Path) -> None:
    """A decision's keys are known by what they are."""
    device = opened(path)
    bad = {key_id(OLD.public_key()): STRANGER.public_key().public_bytes_raw().hex()}
    device.accept(decision(1, kind="keys", standing=DesiredState(keys=bad)))
    assert {key_id(k) for k in device.trusted} == {
        key_id(OLD.public_key()), key_id(STRANGER.public_key())
    }  # fmt: skip


@pytest.mark.parametrize("text", [b"", b"garbage", b"[]", b'{"seq": -1}'])
def test_a_damaged_memory_is_as_none(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    assert opened(path).seq == 0


def test_on_a_full_disk_it_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    device = opened(tmp_path / "file" / "accepted-v1.json")  # no folder can be made there
    device.accept(decision(1))
    refused(device, decision(1, reason="other"), "replayed")


def test_without_a_file_it_is_in_memory_alone() -> None:
    worker = opened(None)
    worker.accept(decision(4))
    assert worker.seq == 4


@given(st.binary(max_size=300))
def test_garbage_is_no_release(junk: bytes) -> None:
    with pytest.raises(MalformedRecord):
        Release.decode(junk)


@given(st.integers(0, 10_000), st.integers(1, 127))
def test_any_altered_byte_of_a_decision_is_refused(at: int, change: int) -> None:
    sound = decision(1, reason="a reason")
    text = bytearray(sound.text.encode())
    text[at % len(text)] ^= change
    bad = sound.replace(text=text.decode(errors="replace"))
    with pytest.raises(ArtifactError):
        opened(None).accept(bad)


def test_a_share_only_grows_and_the_rest_gets_what_is_stable() -> None:
    stable, offered = (
        Ref(model="1-aaaaaaaa", digest="a" * 64, size=100_000),
        Ref(model="2-bbbbbbbb", digest="b" * 64, size=100_000),
    )
    devices = [f"d{i}" for i in range(400)]
    groups = []
    for share in (0.0, 0.05, 0.25, 1.0):
        standing = DesiredState(stable=stable, offered=offered, share=share)
        targets = {d: standing.target("tiny", d) for d in devices}
        groups.append({d for d, ref in targets.items() if ref == offered})
        assert all(ref in (stable, offered) for ref in targets.values())
    assert groups[0] == set()
    assert groups[0] < groups[1] < groups[2] < groups[3] == set(devices)
    assert 60 < len(groups[2]) < 140
    assert all(0 <= rollout_position("tiny", d) < 1 for d in devices)


def test_the_latest_withdrawals_are_kept() -> None:
    standing = DesiredState()
    for number in range(1, 30):
        standing = standing.without(f"{number}-aaaaaaaa", "bad")
    assert list(standing.withdrawn)[-1] == "29-aaaaaaaa"
    assert len(standing.withdrawn) == WITHDRAWN_KEPT


def of(path: Path, version: int) -> Acceptance:
    return Acceptance(path.parent, replace(task, version=version), [OLD.public_key()])


def test_each_task_version_has_a_history_of_its_own_and_none_is_replayed(path: Path) -> None:
    first = decision(1)
    second = decision(2, first.digest)
    for release in (first, second):
        of(path, 1).accept(release)
    new = decision(1, task_version=2)
    refused(of(path, 1), new, "task")
    assert of(path, 2).seq == 0
    of(path, 2).accept(new)
    refused(of(path, 2), second, "task")
    back = of(path, 1)  # the way back
    assert back.seq == 2
    refused(back, first, "replayed")
    back.accept(decision(3, second.digest))
    again = of(path, 2)
    assert again.seq == 1
    again.accept(decision(2, new.digest, task_version=2))


def test_a_key_that_one_task_version_has_revoked_decides_nothing_of_another(path: Path) -> None:
    first = decision(1, standing=DesiredState(keys=KEYS))
    revoked = [key_id(OLD.public_key())]
    second = decision(2, first.digest, NEW, standing=DesiredState(keys=KEYS, revoked=revoked))
    for release in (first, second):
        of(path, 1).accept(release)
    refused(of(path, 2), decision(1, task_version=2), "untrusted-key")
    new = decision(1, key=NEW, task_version=2)  # a new registry names no keys
    of(path, 2).accept(new)
    next_one = decision(2, new.digest, NEW, task_version=2)
    of(path, 2).accept(next_one)
    refused(of(path, 2), decision(3, next_one.digest, task_version=2), "untrusted-key")
    refused(of(path, 1), decision(3, second.digest), "revoked")
