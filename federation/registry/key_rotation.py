"""Whose signatures count: telling devices of a key, handing over to it, and taking one back.

A device trusts the keys that it was started with and those that decisions name (acceptance.py). The
registry takes the key of the first decision for the former. A rotation is

1. `trust`: a decision by the key in use names the new one, and itself, for devices that come new
2. `hand_over`: the new key signs, and says so by a first decision of its own
3. `revoke`: what is served is signed anew, then a decision says that the old key counts no more

Each step looks at what holds and does what is left of it: after a crash it is called again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from federation.registry.object_store import open_store
from federation.registry.registry import Registry, Stale
from streams.contract.artifact import Artifact, pack
from streams.contract.decisions import DesiredState, Kind, Ref, Release
from streams.contract.errors import UsageError
from streams.contract.signing import key_id, public_keys

ATTEMPTS = 5

T = TypeVar("T")


def settled(attempt: Callable[[], T]) -> T:
    """What `attempt` gives, made again where somebody else has decided in the meantime."""
    for _ in range(ATTEMPTS - 1):
        try:
            return attempt()
        except Stale:
            continue
    return attempt()


def open_registry(place: str | Path, trusted: list[Ed25519PublicKey]) -> Registry:
    """The registry at a place, of the task that its last decision is about; UsageError where
    nothing has been decided."""
    store = open_store(place)
    names = store.names("history")
    if not names:
        raise UsageError(f"nothing is decided in {place} yet: run `tidewheel prepare` first")
    said = Release.decode(store.read(f"history/{names[-1]}")).decision
    return Registry(place, said.task, said.task_version, trusted)


@dataclass(frozen=True)
class Keys:
    """Whose signatures devices take by now, by name, and whose they do not any more."""

    counting: dict[str, Ed25519PublicKey]
    revoked: tuple[str, ...]

    def check(self, key: Ed25519PrivateKey) -> None:
        """UsageError where devices would refuse what `key` decides."""
        signer = key_id(key.public_key())
        if signer in self.revoked:
            raise UsageError(f"key {signer} is revoked: `tidewheel keys use` another one")
        if signer not in self.counting:
            raise UsageError(
                f"devices have not been told to trust key {signer}, and would refuse what it "
                "decides: `tidewheel keys trust` it where the key in use is"
            )


def keys_of(registry: Registry) -> Keys:
    """As the registry's decisions have it; UsageError before the first."""
    history = registry.history()
    if not history:
        raise UsageError(f"nothing is decided in {registry.where}: run `tidewheel prepare` first")
    first, standing = history[0].decision, history[-1].decision.standing
    keys = {first.key: registry.keys[first.key], **public_keys(standing.keys)}
    counting = {name: key for name, key in keys.items() if name not in standing.revoked}
    return Keys(counting, tuple(standing.revoked))


def trust(
    registry: Registry, key: Ed25519PrivateKey, public: Ed25519PublicKey, reason: str = ""
) -> Release | None:
    """Step 1; None where it was done before. UsageError for a key that has been revoked."""
    keys, last, name = keys_of(registry), _last(registry), key_id(public)
    keys.check(key)
    standing = last.decision.standing
    if name in keys.revoked:
        raise UsageError(f"key {name} is revoked for good: make another, `tidewheel keys new`")
    wanted = {key_id(k): k.public_bytes_raw().hex() for k in (key.public_key(), public)}
    if wanted.items() <= standing.keys.items():
        return None
    after = standing.model_copy(update={"keys": {**standing.keys, **wanted}})
    return registry.decide(key, "keys", after, last, reason=reason or f"key {name} is trusted")


def hand_over(registry: Registry, key: Ed25519PrivateKey) -> Release | None:
    """Step 2, once `key` is the one that signs; None where its word was the last already. A device
    that is given this key alone learns the others from it."""
    keys_of(registry).check(key)
    last, name = _last(registry), key_id(key.public_key())
    if last.decision.key == name:
        return None
    return registry.decide(
        key, "keys", last.decision.standing, last, reason=f"key {name} signs from now on"
    )


def revoke(
    registry: Registry, key: Ed25519PrivateKey, gone: str, reason: str = ""
) -> list[Release]:
    """Step 3: the decisions that it took, none where nothing was left to do. UsageError for the key
    that signs, and for one that nobody knows."""
    if gone == key_id(key.public_key()):
        raise UsageError(f"key {gone} is the one in use: `tidewheel keys use` another one first")
    keys = keys_of(registry)
    keys.check(key)
    if gone not in registry.keys and gone not in keys.revoked:
        raise UsageError(f"no key {gone} is known here: `tidewheel keys list` has them")
    found: list[Release] = []
    while (made := settled(lambda: _revoked(registry, key, gone, reason))) is not None:
        found.append(made)
    return found


def _revoked(registry: Registry, key: Ed25519PrivateKey, gone: str, reason: str) -> Release | None:
    """The next decision that revoking takes: what was signed by the key first, the key last."""
    last = _last(registry)
    standing, why = last.decision.standing, f"signed by key {gone}, which is revoked"
    why += f": {reason}" if reason else ""

    def signed(ref: Ref | None) -> bool:
        return ref is not None and registry.load(ref.model).manifest.key == gone

    def decide(kind: Kind, about: Ref | None, after: DesiredState, text: str = why) -> Release:
        model = about.model if about else None
        return registry.decide(key, kind, after, last, model=model, reason=text)

    offered, candidate, stable = standing.offered, standing.candidate, standing.stable
    if offered is not None and signed(offered):
        after = standing.without(offered.model, why)
        nobody = {"offered": None, "share": 0.0, "stage": 0}
        return decide("rolled-back", offered, after.model_copy(update=nobody))
    if signed(candidate):
        return decide("dropped", candidate, standing.model_copy(update={"candidate": None}))
    if stable is not None and signed(stable):
        renewed = registry.add(signed_anew(registry.load(stable.model), registry, key))
        ref = Ref(model=renewed.model, digest=renewed.digest)
        text = f"{stable.model} signed anew, it was {why}"
        return decide("served", ref, standing.model_copy(update={"stable": ref}), text)
    teacher = registry.teacher() if standing.teacher else None
    if teacher is not None and teacher.manifest.key == gone:
        renewed = registry.add_teacher(signed_anew(teacher, registry, key))
        ref = Ref(model=renewed.model, digest=renewed.digest)
        text = f"teacher {teacher.model} signed anew, it was {why}"
        return decide("teacher", ref, standing.model_copy(update={"teacher": ref}), text)
    if gone in standing.revoked and gone not in standing.keys:
        return None
    rest = {name: raw for name, raw in standing.keys.items() if name != gone}
    revoked = [*(k for k in standing.revoked if k != gone), gone]
    after = standing.model_copy(update={"keys": rest, "revoked": revoked})
    text = f"key {gone} is revoked" + (f": {reason}" if reason else "")
    return decide("keys", None, after, text)


def signed_anew(artifact: Artifact, registry: Registry, key: Ed25519PrivateKey) -> bytes:
    """The same files under the next number, made of the one before."""
    teacher = artifact.manifest.kind == "teacher"
    number = artifact.manifest.number + 1 if teacher else registry.next_number()
    fresh = {"number": number, "base": artifact.model, "created_us": time.time_ns() // 1000}
    return pack(artifact.manifest.model_copy(update=fresh), artifact.files, key)


def _last(registry: Registry) -> Release:
    last = registry.last()
    if last is None:
        raise UsageError(f"nothing is decided in {registry.where}: run `tidewheel prepare` first")
    return last
