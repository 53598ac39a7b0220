"""Extracts the valid decision chain from the `releases` topic and ignores other records. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from federation.registry.registry import Registry
from streams.contract.decisions import ZERO, Release
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.signing import key_id, public_keys
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
class _Counting:
    """The keys that are trusted after some decisions; at first the initial ones."""

    registry: Registry
    keys: dict[str, Ed25519PublicKey]
    revoked: frozenset[str] = frozenset()

    def takes(self, release: Release) -> bool:
        """Return whether a trusted key signed the release; if so, apply its changes of keys."""
        keys = {name: key for name, key in self.keys.items() if name not in self.revoked}
        try:
            decision = release.verified(keys, self.registry.task)
        except ArtifactError:
            return False
        if decision.task_version != self.registry.task_version:
            return False
        self.keys |= public_keys(decision.standing.keys)
        self.revoked = frozenset(decision.standing.revoked)
        return True


def chain(registry: Registry, announced: Sequence[Release]) -> list[Release]:
    """Return the chain of decisions from the first one through the last announced one to its end,
    ignoring other records; none if no trusted key signed any.

    The registry's trusted keys must contain that of the first decision; afterwards `registry.keys`
    has the others. Raises ArtifactError if a decision is missing.
    """
    trusted = {key_id(key): key for key in registry.trusted}
    ours = _signed_by_us(registry, dict(trusted), announced)
    by_digest = {release.digest: release for release in ours}
    after: dict[str, list[Release]] = defaultdict(list)
    for release in ours:
        after[release.decision.prev].append(release)
    for last in reversed(ours):
        counting = _Counting(registry, dict(trusted))
        found = _back(last, by_digest)
        if not all(map(counting.takes, found)):
            continue  # signed by a revoked key
        while following := next(filter(counting.takes, after[found[-1].digest]), None):
            found.append(following)
        registry.keys.update(counting.keys)
        return found
    return []


def _signed_by_us(
    registry: Registry, keys: dict[str, Ed25519PublicKey], announced: Sequence[Release]
) -> list[Release]:
    """Return the releases signed by a trusted key, or by one that such a release names, revoked or
    not."""
    known, found = 0, list[Release]()
    while known != len(keys):
        known, found = len(keys), []
        for release in announced:
            counting = _Counting(registry, keys)
            if counting.takes(release):
                found.append(release)
    return found


def _back(last: Release, by_digest: Mapping[str, Release]) -> list[Release]:
    """Return the chain from the first decision to `last`."""
    found = [last]
    while (decision := found[-1].decision).prev != ZERO:
        before = by_digest.get(decision.prev)
        if before is None:
            raise ArtifactError(
                "history",
                f"`releases` has decision {last.decision.seq} of {decision.task}, but not the "
                f"original decision {decision.seq - 1}: restore a backup",
            )
        found.append(before)
    return found[::-1]


def strangers(registry: Registry, announced: Sequence[Release], last: int) -> list[str]:
    """Return the unknown keys of announced decisions with later numbers, which cannot be
    verified."""
    keys = {release.decision.key for release in announced if release.decision.seq > last}
    return sorted(keys - set(registry.keys))
