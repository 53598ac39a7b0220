"""A key takes another one's place, and devices follow: those that have seen all of it, those that
come back later, and those that come new."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.registry import key_rotation
from federation.registry.registry import Registry
from streams.contract.artifact import key_id, unpack
from streams.contract.decisions import SIGNED_AGAIN, Release, sign
from streams.contract.errors import ArtifactError, UsageError
from streams.runtime.trust import Acceptance
from tests.rig.made_up.registries import (
    NEW,
    OLD,
    STRANGER,
    model,
    offer,
    registry_in,
    serve,
    wait,
)
from tests.rig.made_up.tiny_task import task
from tests.rig.unwrap import unwrap

OLD_ID, NEW_ID = key_id(OLD.public_key()), key_id(NEW.public_key())


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """One version is served."""
    made = registry_in(tmp_path / "registry")
    serve(made, model(made, 1))
    return made


def device(*given: object) -> Acceptance:
    return Acceptance(None, task, list(given))  # type: ignore[arg-type]


def follow(one: Acceptance, registry: Registry) -> list[int]:
    """Read the history as it stands on `releases`; the decisions that were accepted."""
    taken = []
    for release in registry.history():
        try:
            taken.append(one.accept(release).seq)
        except ArtifactError as exc:
            assert exc.reason in ("untrusted-key", "replayed")  # noqa: PT017 - read again
    return taken


def installs(one: Acceptance, registry: Registry) -> str:
    """The stable version, as a device verifies it."""
    stable = unwrap(registry.desired().stable)
    data = registry.read(stable.model)
    found = unpack(data, one.trusted, task="tiny", task_version=1, digest=stable.digest)
    return found.manifest.key


def rotate(registry: Registry) -> None:
    """Up to where the new key signs."""
    key_rotation.trust(registry, OLD, NEW.public_key())
    key_rotation.hand_over(registry, NEW)


def test_devices_follow_a_rotation_from_end_to_end(registry: Registry) -> None:
    always, away = device(OLD.public_key()), device(OLD.public_key())
    assert follow(always, registry) == follow(away, registry) == [1]
    rotate(registry)
    follow(always, registry)
    between = device(NEW.public_key())  # it came when the new key had just taken over
    assert follow(between, registry) == [3]
    assert installs(between, registry) == OLD_ID  # what the old one signed still counts
    made = key_rotation.revoke(registry, NEW, OLD_ID, "lost")
    assert [r.decision.kind for r in made] == ["served", "keys"]
    second = serve(registry, model(registry, 5, NEW), NEW)
    new = device(NEW.public_key())
    late = device(OLD.public_key())  # started with the old key, after all of it
    for one in (always, away, between, new, late):
        follow(one, registry)
        assert one.seq == second.decision.seq
        assert [key_id(k) for k in one.trusted] == [NEW_ID]
        assert installs(one, registry) == NEW_ID
    forged = unwrap(registry.last())
    with pytest.raises(UsageError, match="is revoked"):
        registry.decide(OLD, "keys", registry.desired(), forged)


def test_the_registry_is_read_with_any_key_of_the_rotation_alone(registry: Registry) -> None:
    """Also by a key that has come later than the first decision: what it signed pins those before.
    One that has signed nothing yet, and one whose decision was changed, pins nothing."""
    rotate(registry)
    key_rotation.trust(registry, NEW, STRANGER.public_key())

    def read_by(*keys: Ed25519PrivateKey) -> list[int]:
        found = Registry(registry.place, "tiny", 1, [key.public_key() for key in keys])
        return [decision.seq for decision in found.decisions()]

    with pytest.raises(ArtifactError, match=r"00000001\.json: untrusted-key: .* with --trust"):
        read_by(STRANGER)
    key_rotation.hand_over(registry, STRANGER)
    key_rotation.revoke(registry, STRANGER, OLD_ID)
    every = [decision.seq for decision in registry.decisions()]
    assert read_by(STRANGER) == read_by(NEW) == read_by(OLD) == read_by(NEW, OLD) == every
    fresh = Registry(registry.place, "tiny", 1, [STRANGER.public_key()])
    assert unwrap(fresh.serving()).manifest.key == key_id(STRANGER.public_key())
    assert list(key_rotation.keys_of(fresh).active) == list(key_rotation.keys_of(registry).active)


@pytest.mark.parametrize("seq", [1, 2, 3])
def test_a_history_that_another_key_began_is_not_pinned(registry: Registry, seq: int) -> None:
    """The thief of the first key writes decisions anew, before the one that the new key signed, or
    claims that the new key signed it."""
    rotate(registry)
    genuine = registry.history()
    changed = genuine[seq - 1].decision.replace(reason="another")
    forged = sign(changed, OLD)
    if seq == 3:
        text = forged.text.replace(OLD_ID, NEW_ID, 1)
        assert Release(text=text, signature=forged.signature).decision.key == NEW_ID
        forged = forged.replace(text=text)
    registry.store.write(f"history/{seq:08d}.json", forged.encode())
    with pytest.raises(ArtifactError, match=r"00000001\.json: untrusted-key"):
        Registry(registry.place, "tiny", 1, [NEW.public_key()]).history()


@pytest.mark.parametrize("known", [False, True])
def test_a_history_that_is_cut_before_a_revocation_and_continued_is_refused(
    registry: Registry, known: bool
) -> None:
    """By the thief of the first key, who may write to the registry: also where a reader has read
    the decisions that are gone."""
    rotate(registry)
    kept = registry.history()
    key_rotation.revoke(registry, NEW, OLD_ID)
    reader = Registry(registry.place, "tiny", 1, [NEW.public_key()])
    if known:
        assert reader.history()[-1].decision.key == NEW_ID
    names = sorted(registry.store.names("history"))
    last = kept[-1]
    assert last.decision.key == NEW_ID
    for name in names[len(kept) :]:
        registry.store.remove(f"history/{name}")
    changes = {"seq": len(kept) + 1, "prev": last.digest, "key": OLD_ID, "reason": "a thief's"}
    forged = sign(last.decision.replace(**changes), OLD)
    registry.store.write(f"history/{len(kept) + 1:08d}.json", forged.encode())
    with pytest.raises(ArtifactError, match=r"untrusted-key: \w+ had handed over"):
        reader.history()


def test_what_a_revoked_key_has_signed_is_signed_anew_or_taken_back(registry: Registry) -> None:
    teacher = model(registry, 3, kind="teacher")
    registry.offer_teacher(OLD, "a test")
    before = unwrap(registry.desired().stable)
    old = registry.load(before.model)
    first, waits = model(registry, 7), model(registry, 8)
    offer(registry, first)
    wait(registry, waits)
    rotate(registry)
    made = key_rotation.revoke(registry, NEW, OLD_ID, "the laptop is gone")
    assert [(r.decision.kind, r.decision.model) for r in made[:2]] == [
        ("rolled-back", first.model), ("dropped", waits.model),
    ]  # fmt: skip
    assert [r.decision.kind for r in made[2:]] == ["served", "teacher", "keys"]
    assert all("the laptop is gone" in r.decision.reason for r in made)
    assert made[2].decision.reason.startswith(f"{SIGNED_AGAIN}{old.model} was signed by key")
    standing = registry.desired()
    assert (standing.offered, standing.candidate, standing.share) == (None, None, 0.0)
    assert first.model in standing.withdrawn
    assert (standing.revoked, list(standing.keys)) == ([OLD_ID], [NEW_ID])
    serving = unwrap(registry.serving())
    assert (serving.manifest.number, serving.manifest.base) == (9, before.model)
    assert serving.files == old.files
    renewed = unwrap(registry.teacher())
    assert (renewed.manifest.number, renewed.manifest.base) == (4, teacher.model)
    assert standing.teacher is not None
    assert standing.teacher.digest == renewed.digest
    assert key_rotation.revoke(registry, NEW, OLD_ID) == []


def test_what_another_key_has_signed_stays_on_offer(registry: Registry) -> None:
    rotate(registry)
    kept = model(registry, 4, NEW)
    offer(registry, kept, NEW)
    key_rotation.revoke(registry, NEW, OLD_ID)
    assert registry.desired().offered == kept
    key_rotation.trust(registry, NEW, STRANGER.public_key())
    before = registry.desired().stable
    made = key_rotation.revoke(registry, NEW, key_id(STRANGER.public_key()))
    assert [r.decision.kind for r in made] == ["keys"]
    assert registry.desired().stable == before


@pytest.mark.parametrize("dies_after", range(5))
def test_a_revocation_that_died_is_finished_by_the_next(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, dies_after: int
) -> None:
    model(registry, 3, kind="teacher")
    registry.offer_teacher(OLD, "a test")
    offer(registry, model(registry, 7))
    rotate(registry)
    decide, left = Registry.decide, iter([True] * dies_after)

    def dying(*words: object, **more: object) -> object:
        if not next(left, False):
            raise KeyboardInterrupt
        return decide(*words, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "decide", dying)
        try:
            key_rotation.revoke(registry, NEW, OLD_ID)
        except KeyboardInterrupt:
            assert registry.desired().revoked == []
    key_rotation.revoke(registry, NEW, OLD_ID)
    new = device(NEW.public_key())
    follow(new, registry)
    assert installs(new, registry) == NEW_ID
    assert registry.desired().revoked == [OLD_ID]
    assert key_rotation.revoke(registry, NEW, OLD_ID) == []


def test_what_would_lock_devices_out_is_refused(registry: Registry) -> None:
    with pytest.raises(UsageError, match="is in use: run"):
        key_rotation.revoke(registry, OLD, OLD_ID)
    with pytest.raises(UsageError, match="devices do not trust key"):
        key_rotation.hand_over(registry, NEW)
    with pytest.raises(UsageError, match="devices do not trust key"):
        key_rotation.trust(registry, STRANGER, STRANGER.public_key())
    with pytest.raises(UsageError, match="key 0123456789abcdef is unknown"):
        key_rotation.revoke(registry, OLD, "0123456789abcdef")
    rotate(registry)
    key_rotation.revoke(registry, NEW, OLD_ID)
    with pytest.raises(UsageError, match="revoked for good"):
        key_rotation.trust(registry, NEW, OLD.public_key())
    with pytest.raises(UsageError, match="is revoked"):
        key_rotation.hand_over(registry, OLD)
