"""The history that is told on `releases`, among whatever else is told there. Nothing is read or
written."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from federation.registry.registry import Registry
from streams.contract.decisions import ZERO, Release
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.signing import key_id, public_keys
from streams.kafka.reader import Received


def releases(told: Iterable[Received]) -> list[Release]:
    """Those among the messages that can be read, whoever has signed them."""
    found = []
    for message in told:
        try:
            release = Release.decode(message.value)
            release.decision  # noqa: B018 - whether it can be read
            found.append(release)
        except MalformedRecord:
            continue
    return found


@dataclass
class _Counting:
    """The keys that count after some decisions; at first those that are trusted."""

    registry: Registry
    keys: dict[str, Ed25519PublicKey]
    revoked: frozenset[str] = frozenset()

    def takes(self, release: Release) -> bool:
        """Whether it is signed by one of them; if so, what it says of keys holds from now on."""
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


def chain(registry: Registry, told: Sequence[Release]) -> list[Release]:
    """The decisions from the first on that lead to what was told last, and on from there, whatever
    else stands on `releases`; none where no key of ours has signed any. The registry's trusted keys
    have to hold that of the first; it knows the others' keys afterwards. ArtifactError where a
    decision is missing."""
    trusted = {key_id(key): key for key in registry.trusted}
    ours = _signed_by_us(registry, dict(trusted), told)
    by_digest = {release.digest: release for release in ours}
    after: dict[str, list[Release]] = defaultdict(list)
    for release in ours:
        after[release.decision.prev].append(release)
    for last in reversed(ours):
        counting = _Counting(registry, dict(trusted))
        found = _back(last, by_digest)
        if not all(map(counting.takes, found)):
            continue  # signed by a key that had been revoked
        while following := next(filter(counting.takes, after[found[-1].digest]), None):
            found.append(following)
        registry.keys.update(counting.keys)
        return found
    return []


def _signed_by_us(
    registry: Registry, keys: dict[str, Ed25519PublicKey], told: Sequence[Release]
) -> list[Release]:
    """Signed by one of the keys, or by one that such a decision names, revoked or not."""
    known, found = 0, list[Release]()
    while known != len(keys):
        known, found = len(keys), []
        for release in told:
            counting = _Counting(registry, keys)
            if counting.takes(release):
                found.append(release)
    return found


def _back(last: Release, by_digest: Mapping[str, Release]) -> list[Release]:
    """Down to the first, oldest first."""
    found = [last]
    while (decision := found[-1].decision).prev != ZERO:
        before = by_digest.get(decision.prev)
        if before is None:
            raise ArtifactError(
                "history",
                f"decision {decision.seq - 1} of {decision.task} is not on `releases` as it was "
                f"made, decision {last.decision.seq} is: restore a backup",
            )
        found.append(before)
    return found[::-1]


def strangers(registry: Registry, told: Sequence[Release], last: int) -> list[str]:
    """Whose decisions were told with later numbers, and cannot be checked."""
    keys = {release.decision.key for release in told if release.decision.seq > last}
    return sorted(keys - set(registry.keys))
