"""Extracts the valid decision chain from the `releases` topic and ignores other records. Pure."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from federation.registry.registry import Registry
from streams.contract.decisions import ZERO, Release, Trust
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.signing import key_id
from streams.kafka.reader import Received


def releases(announced: Iterable[Received]) -> list[Release]:
    """Return the readable releases among the messages, whoever signed them."""
    found = []
    for message in announced:
        try:
            release = Release.decode(message.value)
            release.decision  # noqa: B018 - whether it can be read
            found.append(release)
        except MalformedRecord:
            continue
    return found


@dataclass
class _Walk:
    """The keys that are trusted after some decisions."""

    registry: Registry
    trust: Trust

    def takes(self, release: Release) -> bool:
        """Return whether the release may follow; if so, apply its changes of keys."""
        try:
            decision = release.verified(self.trust.known, self.registry.task)
            if decision.task_version != self.registry.task_version:
                return False
            self.trust = self.trust.after(decision)
        except ArtifactError:
            return False
        return True


def chain(
    registry: Registry, announced: Sequence[Release], own: Ed25519PublicKey | None = None
) -> list[Release]:
    """Return the chain of decisions from the first one through the last announced one to its end,
    ignoring other records; none if no trusted key signed any. A chain without a revocation that the
    `own` key has announced is another's.

    The registry's trusted keys must contain that of the first decision; afterwards `registry.keys`
    has the others. Raises ArtifactError if a decision is missing.
    """
    first = Trust.at_first({key_id(key): key for key in registry.trusted})
    ours = _signed_by_us(registry, first.known, announced)
    by_digest = {release.digest: release for release in ours}
    after: dict[str, list[Release]] = defaultdict(list)
    for release in ours:
        after[release.decision.prev].append(release)
    gone = set() if own is None else revoked_by(registry, own, announced).keys()
    torn: list[tuple[Release, Release]] = []
    for last in reversed(ours):
        found, walk = _back(last, by_digest), _Walk(registry, first)
        if found[0].decision.prev != ZERO:
            torn.append((found[0], last))
            continue
        if not all(map(walk.takes, found)):
            continue  # signed by a revoked key
        while following := next(filter(walk.takes, after[found[-1].digest]), None):
            found.append(following)
        if not gone <= walk.trust.revoked:
            continue
        _check_complete(torn, walk.trust.active)
        registry.keys.update(walk.trust.known)
        return found
    _check_complete(torn, {release.decision.key for release in ours})
    return []


def _check_complete(torn: Sequence[tuple[Release, Release]], active: Container[str]) -> None:
    """Raise ArtifactError if a decision before one by an active key is missing. One that a revoked
    key has signed since, or a key that only it has named, is none of the chain."""
    for earliest, last in torn:
        decision = earliest.decision
        if decision.key in active:
            raise ArtifactError(
                "history",
                f"`releases` has decision {last.decision.seq} of {decision.task}, but not the "
                f"original decision {decision.seq - 1}: restore a backup",
            )


def _signed_by_us(
    registry: Registry, trusted: Mapping[str, Ed25519PublicKey], announced: Sequence[Release]
) -> list[Release]:
    """Return the releases signed by a trusted key, or by one that such a release names, revoked or
    not."""
    keys, known, found = dict(trusted), 0, list[Release]()
    while known != len(keys):
        known, found = len(keys), []
        for release in announced:
            walk = _Walk(registry, Trust.at_first(keys))
            if walk.takes(release):
                found.append(release)
                keys |= walk.trust.known
    return found


def _back(last: Release, by_digest: Mapping[str, Release]) -> list[Release]:
    """Return the decisions up to `last`, from the first one or from the first that is there."""
    found = [last]
    while (before := by_digest.get(found[-1].decision.prev)) is not None:
        found.append(before)
    return found[::-1]


def check_revocations(
    registry: Registry, own: Ed25519PublicKey, announced: Iterable[Release]
) -> None:
    """Raise ArtifactError if the `own` key has announced that a key is revoked, and the registry
    does not say so: then it holds another history than the one that devices follow."""
    found, revoked = revoked_by(registry, own, announced), registry.desired().revoked
    if lost := sorted(set(found) - set(revoked)):
        raise ArtifactError(
            "revoked",
            f"{registry.where} does not revoke key {lost[0]}, but decision {found[lost[0]]} on "
            "`releases` does: others have written the registry, or it is new; restore a backup or "
            f"run `tidewheel models restore`; if it is new run `tidewheel keys revoke {lost[0]}`",
        )


def revoked_by(
    registry: Registry, own: Ed25519PublicKey, announced: Iterable[Release]
) -> dict[str, int]:
    """Return the keys that decisions of the `own` key revoke, and in which decision last."""
    signer, found = key_id(own), dict[str, int]()
    for release in announced:
        decision = release.decision
        if decision.key == signer and decision.standing.revoked:
            try:
                release.verified({signer: own}, registry.task)
            except ArtifactError:
                continue
            found |= dict.fromkeys(decision.standing.revoked, decision.seq)
    return found


def strangers(registry: Registry, announced: Sequence[Release], last: int) -> list[str]:
    """Return the unknown keys of announced decisions with later numbers, which cannot be
    verified."""
    keys = {release.decision.key for release in announced if release.decision.seq > last}
    return sorted(keys - set(registry.keys))
