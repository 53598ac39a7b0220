"""Rotation of signing keys: announce a new key to devices, switch to it, revoke the old one.

A device trusts the keys that it was started with and those that decisions name
(streams.runtime.trust). For the registry the former is the key of the first decision. A rotation is

1. `trust`: a decision by the current key names the new key, and itself, for new devices
2. `hand_over`: the new key signs, starting with a decision of its own
3. `revoke`: served versions are signed again, then a decision revokes the old key

Each step checks the current state and does what is missing: after a crash, call it again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from federation.registry.registry import NOT_OFFERED, Registry, Stale
from streams.contract.artifact import Artifact, key_id, pack, public_keys
from streams.contract.decisions import SIGNED_AGAIN, DesiredState, Kind, Ref, Release
from streams.contract.errors import UsageError
from streams.runtime.files import open_store

ATTEMPTS = 5

T = TypeVar("T")


def settled(attempt: Callable[[], T]) -> T:
    """Return the result of `attempt`, repeating it when another process has decided meanwhile."""
    for _ in range(ATTEMPTS - 1):
        try:
            return attempt()
        except Stale:
            continue
    return attempt()


def open_registry(place: str | Path, trusted: list[Ed25519PublicKey]) -> Registry:
    """Return the registry at a place, for the task of its last decision; raise UsageError if there
    is none."""
    store = open_store(place)
    names = store.names("history")
    if not names:
        raise UsageError(f"{place} has no decisions yet: run `tidewheel prepare` first")
    said = Release.decode(store.read(f"history/{names[-1]}")).decision
    return Registry(place, said.task, said.task_version, trusted)


@dataclass(frozen=True)
class Keys:
    """The keys that devices trust now, by ID, and the revoked ones."""

    active: dict[str, Ed25519PublicKey]
    revoked: tuple[str, ...]

    def check(self, key: Ed25519PrivateKey) -> None:
        """Raise UsageError if devices would refuse decisions signed with `key`."""
        signer = key_id(key.public_key())
        if signer in self.revoked:
            raise UsageError(f"key {signer} is revoked: use another with `tidewheel keys use`")
        if signer not in self.active:
            raise UsageError(
                f"devices do not trust key {signer} and would refuse its decisions: run "
                "`tidewheel keys trust` where the current key is"
            )


def keys_of(registry: Registry) -> Keys:
    """Return the keys after the registry's decisions; raise UsageError before the first one."""
    history = registry.history()
    if not history:
        raise UsageError(f"nothing is decided in {registry.where}: run `tidewheel prepare` first")
    first, desired = history[0].decision, history[-1].decision.standing
    keys = {first.key: registry.keys[first.key], **public_keys(desired.keys)}
    active = {name: key for name, key in keys.items() if name not in desired.revoked}
    return Keys(active, tuple(desired.revoked))


def trust(
    registry: Registry, key: Ed25519PrivateKey, public: Ed25519PublicKey, reason: str = ""
) -> Release | None:
    """Run step 1; return None if it is done. Raises UsageError for a revoked key."""
    keys, last, name = keys_of(registry), last_decision(registry), key_id(public)
    keys.check(key)
    desired = last.decision.standing
    if name in keys.revoked:
        raise UsageError(f"key {name} is revoked for good: create one with `tidewheel keys trust`")
    wanted = {key_id(k): k.public_bytes_raw().hex() for k in (key.public_key(), public)}
    if wanted.items() <= desired.keys.items():
        return None
    after = desired.replace(keys={**desired.keys, **wanted})
    return registry.decide(key, "keys", after, last, reason=reason or f"key {name} is trusted")


def hand_over(registry: Registry, key: Ed25519PrivateKey) -> Release | None:
    """Run step 2 with the new signing key; return None if it signed the last decision. A device
    that has only this key learns the others from the decision."""
    keys_of(registry).check(key)
    last, name = last_decision(registry), key_id(key.public_key())
    if last.decision.key == name:
        return None
    return registry.decide(
        key, "keys", last.decision.standing, last, reason=f"key {name} signs from now on"
    )


def revoke(
    registry: Registry, key: Ed25519PrivateKey, gone: str, reason: str = ""
) -> list[Release]:
    """Run step 3; return the decisions made, none if it is done. Raises UsageError for the current
    signing key and for an unknown one."""
    if gone == key_id(key.public_key()):
        raise UsageError(f"key {gone} is in use: run `tidewheel keys use` with another one first")
    keys = keys_of(registry)
    keys.check(key)
    if gone not in registry.keys and gone not in keys.revoked:
        raise UsageError(f"key {gone} is unknown: `tidewheel keys list` shows the keys")
    found: list[Release] = []
    while (made := settled(lambda: _revoked(registry, key, gone, reason))) is not None:
        found.append(made)
    return found


def _revoked(registry: Registry, key: Ed25519PrivateKey, gone: str, reason: str) -> Release | None:
    """Make the next decision of step 3: first for versions signed by the key, last for the key
    itself."""
    last = last_decision(registry)
    desired, why = last.decision.standing, f"signed by key {gone}, which is revoked"
    why += f": {reason}" if reason else ""

    def signed(ref: Ref | None) -> bool:
        return ref is not None and registry.load(ref.model).manifest.key == gone

    def decide(kind: Kind, about: Ref | None, after: DesiredState, text: str = why) -> Release:
        model = about.model if about else None
        return registry.decide(key, kind, after, last, model=model, reason=text)

    offered, candidate, stable = desired.offered, desired.candidate, desired.stable
    if offered is not None and signed(offered):
        after = desired.without(offered.model, why)
        return decide("rolled-back", offered, after.replace(**NOT_OFFERED))
    if signed(candidate):
        return decide("dropped", candidate, desired.replace(candidate=None))
    if stable is not None and signed(stable):
        renewed = registry.add(sign_again(registry.load(stable.model), registry, key))
        ref = Ref.of(renewed)
        text = f"{SIGNED_AGAIN}{stable.model} was {why}"
        return decide("served", ref, desired.replace(stable=ref), text)
    teacher = registry.teacher() if desired.teacher else None
    if teacher is not None and teacher.manifest.key == gone:
        renewed = registry.add_teacher(sign_again(teacher, registry, key))
        ref = Ref.of(renewed)
        text = f"teacher {teacher.model} signed again, it was {why}"
        return decide("teacher", ref, desired.replace(teacher=ref), text)
    if gone in desired.revoked and gone not in desired.keys:
        return None
    rest = {name: raw for name, raw in desired.keys.items() if name != gone}
    revoked = [*(k for k in desired.revoked if k != gone), gone]
    after = desired.replace(keys=rest, revoked=revoked)
    text = f"key {gone} is revoked" + (f": {reason}" if reason else "")
    return decide("keys", None, after, text)


def sign_again(artifact: Artifact, registry: Registry, key: Ed25519PrivateKey) -> bytes:
    """Return an artifact with the same files under the next number, with the old version as
    base."""
    teacher = artifact.manifest.kind == "teacher"
    number = artifact.manifest.number + 1 if teacher else registry.next_number()
    fresh = {"number": number, "base": artifact.model, "created_us": time.time_ns() // 1000}
    return pack(artifact.manifest.replace(**fresh), artifact.files, key)


def last_decision(registry: Registry) -> Release:
    """Return the last decision; raise UsageError before the first one."""
    last = registry.last()
    if last is None:
        raise UsageError(f"nothing is decided in {registry.where}: run `tidewheel prepare` first")
    return last
