"""The registry's chain of decisions, verified from the first one on whenever it is read.

The files are history/<seq>.json. Each look lists them, and reads only those that are new or were
written again since the last look, and what follows them: a decision is read and verified once.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from streams.contract.artifact import public_keys
from streams.contract.decisions import ZERO, Decision, Release, Trust
from streams.contract.errors import ArtifactError, MalformedRecord, UsageError
from streams.runtime.files import ObjectStore

FOLDER = "history"
READERS = 16  # files that are read at the same time
NAME = re.compile(r"[0-9]{8}\.json")
ADVICE = {
    "untrusted-key": ": if its key is yours, put the .pub file in keys/, or name it with --trust",
    "revoked": ", then remove this file and all later ones",
}


@dataclass(frozen=True)
class _Entry:
    name: str
    tag: str
    release: Release
    trust: Trust  # after it


@dataclass
class History:
    """The decisions of one task and task version in a store; the first one's key is one of
    `trusted`, or a decision that one of these has signed pins the first one."""

    store: ObjectStore
    where: str
    task: str
    task_version: int
    trusted: Mapping[str, Ed25519PublicKey]
    _read: list[_Entry] = field(default_factory=list)
    _first: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)  # see _pin
    _earlier: list[str] = field(default_factory=list)  # who signed the pinned decisions

    def releases(self) -> list[Release]:
        """Return all decisions, oldest first. Raises ArtifactError for a broken chain, an altered
        decision, and one by a key that was not trusted then or was revoked before; UsageError for
        the registry of another task or version."""
        found = sorted(decided(self.store.tags(FOLDER)).items())
        kept = list(self._unchanged(found))
        if self._first and len(kept) < len(self._read):
            kept = []  # the decision that pinned the first one may be gone
        self._read = kept
        fresh = found[len(self._read) :]
        with ThreadPoolExecutor(READERS) as pool:  # far away each takes its time
            texts = [*pool.map(lambda entry: self.store.read(f"{FOLDER}/{entry[0]}"), fresh)]
        if not self._read:
            self._pin(texts)
        for (name, tag), text in zip(fresh, texts, strict=True):
            self._read.append(self._verified(name, tag, text))
        return [entry.release for entry in self._read]

    def valid(self) -> list[tuple[Decision, Trust]]:
        """Return the decisions that were valid when they were read last, and the keys after
        each."""
        return [(entry.release.decision, entry.trust) for entry in self._read]

    @property
    def trust(self) -> Trust:
        """The keys after the decisions that were read last."""
        if self._read:
            return self._read[-1].trust
        return Trust.at_first({**self.trusted, **self._first})

    def _pin(self, texts: Sequence[bytes]) -> None:
        """Find the key of the first decision, where it is not trusted and has handed over to one
        that is: the digests in what that one signed reach back to the first decision, and a
        decision on the way names the first key. What earlier keys sign after that counts not: it
        may be a thief who has cut the history before the decision that revokes them."""
        self._first, self._earlier, chain = {}, [], list[Release]()
        try:
            for text in texts:
                chain.append(Release.decode(text))
                if chain[-1].decision.key in self.trusted:
                    chain[-1].verified(self.trusted, self.task)
                    break
            else:
                return
        except (ArtifactError, MalformedRecord):  # named when the chain is verified
            return
        if any(one.digest != after.decision.prev for one, after in pairwise(chain)):
            return
        named: dict[str, Ed25519PublicKey] = {}
        for release in chain:
            named |= public_keys(release.decision.standing.keys)
        self._first = {name: key for name, key in named.items() if name == chain[0].decision.key}
        self._earlier = [release.decision.key for release in chain[:-1]]

    def _unchanged(self, found: list[tuple[str, str]]) -> Iterator[_Entry]:
        for entry, now in zip(self._read, found, strict=False):
            if (entry.name, entry.tag) != now:
                return
            yield entry

    def _verified(self, name: str, tag: str, text: bytes) -> _Entry:
        """Return the decision that follows those in `_read`."""
        where, trust = f"{self.where}/{FOLDER}/{name}", self.trust
        try:
            release = Release.decode(text)
            if not self._read:
                self._check_task(release.decision)
            decision = release.verified(trust.known, self.task)
            if len(self._read) > len(self._earlier) > 0 and decision.key in self._earlier:
                raise ArtifactError("untrusted-key", f"{decision.key} had handed over before")
            if decision.task_version != self.task_version:
                of = f"version {decision.task_version} of task {self.task}"
                raise ArtifactError("history", f"the decision is of {of}")
            if f"{decision.seq:08d}.json" != name:
                raise ArtifactError("history", f"it holds decision {decision.seq}")
            before = self._read[-1].release.digest if self._read else ZERO
            if decision.seq != len(self._read) + 1 or decision.prev != before:
                raise ArtifactError(
                    "history", f"decision {decision.seq} does not follow the one before it"
                )
            return _Entry(name, tag, release, trust.after(decision))
        except MalformedRecord as exc:
            raise ArtifactError("history", f"{where}: {exc}") from exc
        except ArtifactError as exc:
            advice = ADVICE.get(exc.reason, "")
            raise ArtifactError("history", f"{where}: {exc}{advice}") from exc

    def _check_task(self, first: Decision) -> None:
        if (first.task, first.task_version) != (self.task, self.task_version):
            raise UsageError(
                f"{self.where} is of version {first.task_version} of task {first.task}, not "
                f"{self.task_version} of {self.task}: name another state folder with --state"
            )


def decided(names: Mapping[str, str]) -> dict[str, str]:
    """Return those of the names in the folder that are decisions."""
    return {name: tag for name, tag in names.items() if NAME.fullmatch(name)}
