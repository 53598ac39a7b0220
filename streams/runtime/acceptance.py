"""Which decisions a device or a worker accepts, and whose keys it trusts by now.

accepted.json beside a device's slots, written whole or not at all before anything is done about a
decision: its number and digest, the keys that it named and those that were named before. A decision
is accepted

1. if it is signed by a key that is trusted: one that the device was started with or that an
   accepted decision named, and that none revoked
2. if it is about this task and its version
3. if its number is above that of the last one; right after it, it has to name that one as the one
   before

so an old one cannot come back, and a history that was rewritten cannot go on. On a full disk what
was accepted is kept in memory: a restart may accept it again. So does a worker always, which reads
`releases` from its beginning.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field

from streams.contract.decisions import Decision, Digest, KeyId, Release
from streams.contract.documents import Document
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.signing import key_id, public_keys
from streams.contract.task import Task
from streams.runtime.disk import write_atomic

log = logging.getLogger(__name__)


class Accepted(Document):
    """accepted.json; `seq` 0 is before the first."""

    seq: int = Field(default=0, ge=0)
    digest: str = ""
    keys: dict[KeyId, Digest] = {}
    revoked: list[KeyId] = []
    past: dict[KeyId, Digest] = {}  # named once, and no more


def forget(path: Path) -> None:
    """A stopped device's decisions count no more: it takes those of another history. Whose keys it
    trusts stays."""
    try:
        before = Accepted.decode(path.read_bytes())
    except (OSError, MalformedRecord):
        path.unlink(missing_ok=True)
        return
    write_atomic(path, before.model_copy(update={"seq": 0, "digest": ""}).encode())


class Acceptance:
    """One process's; `given` are the keys that it was started with."""

    def __init__(self, path: Path | None, task: Task, given: Sequence[Ed25519PublicKey]) -> None:
        self._path, self._task = path, task
        self._given = {key_id(key): key for key in given}
        self._state = self._read()

    @property
    def seq(self) -> int:
        """The number of the last decision that was accepted; 0 before the first."""
        return self._state.seq

    @property
    def trusted(self) -> list[Ed25519PublicKey]:
        """The keys whose signatures count now."""
        return list(self._keys().values())

    @property
    def known(self) -> list[Ed25519PublicKey]:
        """Those that count or have counted: what is installed stays, whoever signed it."""
        return list({**public_keys(self._state.past), **self._all_keys()}.values())

    def is_last(self, release: Release) -> bool:
        return release.digest == self._state.digest

    def accept(self, release: Release) -> Decision:
        """The decision, which holds from now on; ArtifactError says why not."""
        decision = release.verified(self._keys(), self._task.name)
        before = self._state
        if decision.task_version != self._task.version:
            raise ArtifactError(
                "task",
                f"a decision about version {decision.task_version} of {self._task.name}, "
                f"not {self._task.version}",
            )
        if release.digest == before.digest:
            return decision
        if decision.seq <= before.seq:
            raise ArtifactError(
                "replayed", f"decision {decision.seq} comes after decision {before.seq}"
            )
        if before.seq and decision.seq == before.seq + 1 and decision.prev != before.digest:
            raise ArtifactError(
                "history",
                f"decision {decision.seq} does not follow the decision {before.seq} known here",
            )
        standing, once = decision.standing, {**before.past, **before.keys}
        self._remember(
            Accepted(
                seq=decision.seq,
                digest=release.digest,
                keys=standing.keys,
                revoked=standing.revoked,
                past={n: raw for n, raw in once.items() if n not in standing.keys},
            )
        )
        return decision

    def _keys(self) -> dict[str, Ed25519PublicKey]:
        keys = self._all_keys()
        return {name: key for name, key in keys.items() if name not in self._state.revoked}

    def _all_keys(self) -> dict[str, Ed25519PublicKey]:
        return {**self._given, **public_keys(self._state.keys)}

    def _remember(self, state: Accepted) -> None:
        self._state = state
        if self._path is None:
            return
        try:
            write_atomic(self._path, state.encode())
        except OSError as exc:
            log.warning("%s not written: %s", self._path, exc)

    def _read(self) -> Accepted:
        if self._path is None:
            return Accepted()
        try:
            return Accepted.decode(self._path.read_bytes())
        except FileNotFoundError:
            return Accepted()
        except (OSError, MalformedRecord) as exc:
            log.warning("%s is not used: %s", self._path, exc)
            return Accepted()
