"""Decisions that are accepted, and those that are not: whoever sends them, whenever they come."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streams.contract.artifact import key_id
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
from streams.runtime.trust import Acceptance, accepted_file, reset
from tests.rig.made_up.tiny_task import task

OLD = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NEW = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))
EVERYBODY = {key_id(key.public_key()): key for key in (OLD, NEW, STRANGER)}
STRANGE = key_id(STRANGER.public_key())


def raw_of(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


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


def test_a_history_that_was_rewritten_does_not_go_on(path: Path) -> None:
    first = decision(1)
    device = opened(path)
    device.accept(first)
    refused(device, decision(2, decision(1, reason="another").digest), "history")
    refused(device, decision(1, reason="another"), "replayed")
    assert device.accept(decision(2, first.digest)).seq == 2


@dataclass
class Said:
    """What a device knows of the decisions about one version of its task."""

    seq: int = 0
    digest: str = ZERO
    named: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)
    past: set[str] = field(default_factory=set)


names = st.sets(st.sampled_from(sorted(EVERYBODY)))
versions = st.sampled_from([1, 2])
SPOILED = ["task", "task_version", "format", "altered", "renamed", "empty"]


class Chains(RuleBasedStateMachine):
    """A device with one of two versions of its task, which trusts the old key at first, and
    decisions signed with any key, by the rules in the docstring of streams.runtime.trust."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp())
        self.said = {1: Said(), 2: Said()}
        self.starts(1)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(version=versions)
    def starts(self, version: int) -> None:
        """As another process: what the file of the other version says of keys counts, too."""
        self.version, other = version, self.said[3 - version]
        self.mine = self.said[version]
        self.initial, self.barred = {key_id(OLD.public_key()), *other.named}, {*other.revoked}
        about = replace(task, version=version)
        self.device = Acceptance(self.folder, about, [OLD.public_key()])

    @rule()
    def is_wiped(self) -> None:
        reset(self.folder)
        for said in self.said.values():
            said.seq, said.digest = 0, ZERO
        self.starts(self.version)

    @rule(version=versions, text=st.sampled_from([b"", b"garbage", b"[]", b'{"seq": -1}']))
    def loses_a_file(self, version: int, text: bytes) -> None:
        accepted_file(self.folder, version).write_bytes(text)
        self.said[version] = Said()
        self.starts(self.version)

    @rule(
        signer=st.sampled_from(sorted(EVERYBODY)), step=st.integers(-1, 3), follows=st.booleans(),
        named=names, revoked=names, spoiled=st.none() | st.sampled_from(SPOILED),
    )  # fmt: skip
    def hears(
        self, signer: str, step: int, follows: bool, named: set[str], revoked: set[str],
        spoiled: str | None,
    ) -> None:  # fmt: skip
        mine, keys = self.mine, {name: raw_of(EVERYBODY[name]) for name in sorted(named)}
        standing = DesiredState(keys=keys, revoked=sorted(revoked))
        about = {"task_version": self.version, "standing": standing}
        wrong = {"task": "other", "task_version": 3 - self.version, "format": 2}
        about |= {spoiled: wrong[spoiled]} if spoiled in wrong else {}
        seq, prev = max(1, mine.seq + step), mine.digest if follows else "a" * 64
        release = decision(seq, prev, EVERYBODY[signer], **about)
        if spoiled == "altered":
            release = release.replace(text=release.text.replace('"time_us":1', '"time_us":2'))
        if spoiled == "renamed":
            release = release.replace(text=release.text.replace(signer, STRANGE))
        if spoiled == "empty":
            release = release.replace(text="{}")
        why = self.why(signer, release, seq, follows, revoked, spoiled)
        if why is not None:
            with pytest.raises(ArtifactError) as caught:
                self.device.accept(release)
            assert caught.value.reason == why
        elif self.device.accept(release) and release.digest != mine.digest:
            mine.past = (mine.past | mine.named) - named
            mine.seq, mine.digest, mine.named, mine.revoked = seq, release.digest, named, revoked
            assert accepted_file(self.folder, self.version).stat().st_mode & 0o777 == 0o644

    def why(
        self, signer: str, release: Release, seq: int, follows: bool, revoked: set[str],
        spoiled: str | None,
    ) -> str | None:  # fmt: skip
        """Why a decision is refused; None if it is not."""
        mine = self.mine
        if spoiled == "empty":
            return "decision"
        if (STRANGE if spoiled == "renamed" else signer) not in self.known:
            return "untrusted-key"
        if spoiled == "altered" or (spoiled == "renamed" and signer != STRANGE):
            return "signature"
        if spoiled in ("task", "task_version", "format"):
            return spoiled.partition("_")[0]
        if release.digest == mine.digest:
            return None
        if seq <= mine.seq:
            return "replayed"
        if mine.seq and seq == mine.seq + 1 and not follows:
            return "history"
        if signer in mine.revoked:
            return "revoked"
        gone = mine.revoked if mine.seq else set()  # a wiped device follows another chain
        if signer not in (self.initial | mine.named) - self.barred:
            return "untrusted-key"
        return None if gone <= revoked else "revoked"

    @property
    def known(self) -> set[str]:
        """All keys that were ever named: what they signed stays installed."""
        return self.mine.past | self.mine.named | self.initial

    @invariant()
    def it_knows_what_it_was_told(self) -> None:
        mine, device = self.mine, self.device
        assert device.seq == mine.seq
        assert {*map(key_id, device.known)} == self.known
        counting = (self.initial | mine.named) - self.barred - mine.revoked
        assert {*map(key_id, device.trusted)} == counting


TestChains = Chains.TestCase
TestChains.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


def test_a_key_under_another_ones_name_does_not_take_its_place(path: Path) -> None:
    """A decision's keys are known by what they are."""
    device = opened(path)
    bad = {key_id(OLD.public_key()): STRANGER.public_key().public_bytes_raw().hex()}
    device.accept(decision(1, kind="keys", standing=DesiredState(keys=bad)))
    assert {key_id(k) for k in device.trusted} == {
        key_id(OLD.public_key()), key_id(STRANGER.public_key())
    }  # fmt: skip


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
