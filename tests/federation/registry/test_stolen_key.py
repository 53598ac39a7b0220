"""A thief has a revoked key, and may write to the registry, to `releases`, or to both: the key
stays revoked for the server and for devices."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.registry import key_rotation
from federation.registry.catalog import verify
from federation.registry.registry import Registry
from federation.registry.restoring import check_revocations
from streams.contract.artifact import key_id
from streams.contract.decisions import DesiredState, Release, sign
from streams.contract.errors import ArtifactError
from streams.runtime.trust import Acceptance
from tests.rig.made_up.registries import NEW, OLD, model, registry_in, serve
from tests.rig.made_up.tiny_task import task
from tests.rig.unwrap import unwrap

OLD_ID, NEW_ID = key_id(OLD.public_key()), key_id(NEW.public_key())


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """The old key is revoked in its last decision."""
    return rotated(registry_in(tmp_path / "registry"))


def rotated(registry: Registry) -> Registry:
    serve(registry, model(registry, 1))
    key_rotation.trust(registry, OLD, NEW.public_key())
    key_rotation.hand_over(registry, NEW)
    key_rotation.revoke(registry, NEW, OLD_ID)
    return registry


def again(registry: Registry) -> Registry:
    """As another process reads it; it was started with both keys."""
    keys = [OLD.public_key(), NEW.public_key()]
    return Registry(registry.place, registry.task, 1, keys)


def following(last: Release, key: Ed25519PrivateKey, standing: DesiredState) -> Release:
    fields = {"seq": last.decision.seq + 1, "prev": last.digest, "standing": standing}
    return sign(last.decision.replace(**fields), key)


def stolen(last: Release, key: Ed25519PrivateKey = OLD) -> Release:
    """The successor by which no key is revoked any more."""
    names = {key_id(k.public_key()): k.public_key().public_bytes_raw().hex() for k in (OLD, NEW)}
    return following(last, key, last.decision.standing.replace(revoked=[], keys=names))  # fmt: skip


def put(registry: Registry, release: Release) -> str:
    name = f"history/{release.decision.seq:08d}.json"
    registry.store.write(name, release.encode())
    return name


def last_of(registry: Registry) -> Release:
    return unwrap(registry.last())


def device(registry: Registry) -> Acceptance:
    """It was started with both keys, and has accepted the history."""
    made = Acceptance(None, task, [OLD.public_key(), NEW.public_key()])
    for release in registry.history():
        made.accept(release)
    return made


@pytest.mark.parametrize(("key", "what"), [(OLD, "is signed by key"), (NEW, "trusts key")])
def test_in_the_registry_the_chain_is_refused_with_what_to_do(
    registry: Registry, key: Ed25519PrivateKey, what: str
) -> None:
    """Also where it was read before, and where a good key has signed what takes the revocation
    back, as a controller that did not look would have."""
    name = put(registry, stolen(last_of(registry), key))
    for reader in (registry, again(registry)):
        for read in (reader.last, reader.desired, reader.history, reader.serving):
            with pytest.raises(ArtifactError) as caught:
                read()
            line = str(caught.value)
            assert f"{registry.where}/{name}: revoked: decision" in line
            assert f"{what} {OLD_ID}" in line
            assert "remove this file and all later ones" in line
            assert "\n" not in line
    assert verify(again(registry)).problems != []
    registry.store.remove(name)
    assert registry.desired().revoked == again(registry).desired().revoked == [OLD_ID]


def test_on_releases_no_device_accepts_it(registry: Registry) -> None:
    genuine, one = registry.history(), device(registry)
    theft = stolen(genuine[-1])
    for release in (theft, following(theft, NEW, theft.decision.standing)):
        with pytest.raises(ArtifactError, match=f"revoked: .* key {OLD_ID}"):
            one.accept(release)
    assert [key_id(key) for key in one.trusted] == [NEW_ID]
    assert one.accept(serve(registry, model(registry, 9, NEW), NEW)).seq == len(genuine) + 1


def test_in_both_a_history_without_the_revocation_is_refused_at_the_start(
    registry: Registry, tmp_path: Path
) -> None:
    """The thief goes back to before the revocation and decides on from there, in the registry and
    under the same numbers on `releases`; the first decision of the new key is on it still."""
    genuine = registry.history()
    fork = registry_in(tmp_path / "fork")
    for release in genuine[:3]:
        put(fork, release)
    for number in range(5, 9):
        serve(fork, model(fork, number))
    assert fork.desired().revoked == []
    with pytest.raises(ArtifactError) as caught:
        check_revocations(fork, NEW.public_key(), [*fork.history(), genuine[-1]])
    assert f"does not revoke key {OLD_ID}" in str(caught.value)
    assert "restore a backup" in str(caught.value)
    one = device(registry)
    for release in [*fork.history(), following(fork.history()[-1], NEW, fork.desired())]:
        with pytest.raises(ArtifactError, match=r"replayed|revoked|history"):
            one.accept(release)
    check_revocations(registry, NEW.public_key(), [*genuine, *fork.history()])


def test_what_the_thief_says_of_our_key_counts_nothing(registry: Registry) -> None:
    last = last_of(registry)
    revoking = last.decision.standing.replace(revoked=[NEW_ID, OLD_ID])
    theft = following(last, OLD, revoking)
    text = theft.text.replace(f'"key":"{OLD_ID}"', f'"key":"{NEW_ID}"')
    forged = theft.replace(text=text)
    check_revocations(registry, NEW.public_key(), [theft, forged])
