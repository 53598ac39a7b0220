"""The registry: the server's signed model versions and the decisions about them.

    models/<model>.twa             artifacts, see streams.contract.artifact
    deltas/<model>.from.<base>.twd deltas between versions, see streams.contract.weights.delta
    teacher.twa                    the teacher
    history/<seq>.json             decisions, see streams.contract.decisions: Release documents
    heldout.safetensors            central segments and labels to evaluate candidates
    calibration.safetensors        segments of the pilots, on which graphs are quantized
    pruned/<model>.json            marks versions whose bytes were removed on purpose, see .manual

in a folder, or any store that fsspec opens. Every artifact is verified when it is added and again
when it is loaded: an altered one raises ArtifactError.

The last decision holds the desired state. A new decision is created under the next number, which
only one writer can do; a second one gets `Stale`, reads the new state and decides again.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from federation.registry.history import History
from streams.contract.artifact import Artifact, Manifest, key_id, unpack
from streams.contract.decisions import (
    ZERO,
    Decision,
    DesiredState,
    Kind,
    Ref,
    Release,
    Trust,
    sign,
)
from streams.contract.errors import ArtifactError, Retryable, UsageError
from streams.contract.topics import task_id
from streams.contract.weights import delta
from streams.runtime.files import ObjectStore, open_store

TEACHER, HELD_OUT, CALIBRATION = "teacher.twa", "heldout.safetensors", "calibration.safetensors"
NOT_OFFERED: Mapping[str, Any] = {"offered": None, "share": 0.0, "stage": 0, "paused": None}


class Stale(Retryable):
    """Another process has decided meanwhile: read the new state."""


@dataclass(frozen=True)
class Registry:
    """The artifacts and decisions of one task and task version, signed by `trusted` keys."""

    place: str | Path
    task: str
    task_version: int
    trusted: Sequence[Ed25519PublicKey]

    @cached_property
    def store(self) -> ObjectStore:
        return open_store(self.place)

    @property
    def id(self) -> str:
        """The id of the task and its version."""
        return task_id(self.task, self.task_version)

    @property
    def where(self) -> str:
        return str(self.place)

    @cached_property
    def _history(self) -> History:
        trusted = {key_id(key): key for key in self.trusted}
        return History(self.store, self.where, self.task, self.task_version, trusted)

    @cached_property
    def keys(self) -> dict[str, Ed25519PublicKey]:
        """The trusted keys by ID, and those that valid decisions have named."""
        return {key_id(key): key for key in self.trusted}

    @cached_property
    def _manifests(self) -> dict[str, Manifest]:
        return {}

    @property
    def folder(self) -> Path:
        """The folder of a registry that is a folder."""
        return Path(self.place)

    def verify(self, data: bytes, kind: str = "model") -> Artifact:
        about: Any = {"task": self.task, "task_version": self.task_version, "kind": kind}
        try:
            return unpack(data, list(self.keys.values()), **about)
        except ArtifactError as exc:
            if exc.reason != "untrusted-key":
                raise
        self.decisions()  # these may name its key
        return unpack(data, list(self.keys.values()), **about)

    # --- artifacts ------------------------------------------------------------------------------

    def add(self, data: bytes) -> Artifact:
        """Verify and store a model version; raise ArtifactError, and store nothing, if it is
        invalid."""
        artifact = self.verify(data)
        self.store.write(_model_file(artifact.model), data)
        return artifact

    def read(self, model: str) -> bytes:
        """Return the bytes of a stored version."""
        return self._read(_model_file(model), model)

    def load(self, model: str) -> Artifact:
        return self.checked(self.read(model), model)

    def checked(self, data: bytes, model: str) -> Artifact:
        """Verify the bytes of a stored version that `read` returned."""
        artifact = self.verify(data)
        if artifact.model != model:
            raise ArtifactError("name", f"{_model_file(model)} holds model {artifact.model}")
        return artifact

    def manifest(self, ref: Ref) -> Manifest:
        """Return the manifest of a stored version; it is read and verified once."""
        if ref.digest not in self._manifests:
            self._manifests[ref.digest] = self._pinned(ref).manifest
        return self._manifests[ref.digest]

    def models(self) -> list[str]:
        """Return the stored versions, oldest first, without reading the files."""
        names = (n.removesuffix(".twa") for n in self.store.names("models") if n.endswith(".twa"))
        return sorted((n for n in names if _number(n)), key=_number)

    def next_number(self) -> int:
        """Return the highest number that any version has had here plus 1."""
        named = [d.model for d in self.decisions() if d.model]
        return max((_number(model) for model in [*self.models(), *named]), default=0) + 1

    def remove(self, model: str) -> None:
        """Delete a version's bytes, and the deltas to and from it."""
        self.store.remove(_model_file(model))
        for name in self.store.names("deltas"):
            if model in (name.partition(".from.")[0], name.partition(".from.")[2][:-4]):
                self.store.remove(f"deltas/{name}")

    def delta(self, model: str, base: str) -> bytes:
        """Return the delta from `base` to `model`; the first call creates and stores it."""
        name = f"deltas/{model}.from.{base}.twd"
        try:
            return self.store.read(name)
        except FileNotFoundError:
            made = delta.make(self.read(model), self.load(base).files)
            self.store.write(name, made)
            return made

    def add_teacher(self, data: bytes) -> Artifact:
        artifact = self.verify(data, kind="teacher")
        self.store.write(TEACHER, data)
        return artifact

    def teacher(self) -> Artifact | None:
        """Return the current teacher; None before the first one."""
        try:
            return self.verify(self.store.read(TEACHER), kind="teacher")
        except FileNotFoundError:
            return None

    def teacher_tag(self) -> str | None:
        """Return a value that changes whenever the stored teacher does, without reading it."""
        return self.store.tag(TEACHER)

    def offer_teacher(self, key: Ed25519PrivateKey, reason: str) -> bool:
        """Decide that the workers use the stored teacher; return False if that is already
        decided."""
        last, teacher = self.last(), self.teacher()
        if teacher is None:
            return False
        before, ref = self.desired(), Ref.of(teacher)
        if before.teacher == ref:
            return False
        desired = before.replace(teacher=ref)
        self.decide(key, "teacher", desired, last, model=ref.model, reason=reason)
        return True

    def read_teacher(self) -> bytes:
        return self._read(TEACHER, "of the workers")

    def central(self, name: str) -> bytes | None:
        """Return the data of HELD_OUT or CALIBRATION; None if there is none."""
        try:
            return self.store.read(name)
        except FileNotFoundError:
            return None

    # --- decisions ------------------------------------------------------------------------------

    def last(self) -> Release | None:
        """Return the last decision; None before the first. Raises as `history`."""
        found = self.history()
        return found[-1] if found else None

    def decisions(self) -> list[Decision]:
        """Return all decisions, oldest first. Raises as `history`."""
        return [release.decision for release in self.history()]

    def history(self, after: int = 0) -> list[Release]:
        """Return the signed decisions with a number above `after`; raise ArtifactError unless the
        whole chain is valid, see federation.registry.history."""
        try:
            return self._history.releases()[after:]
        finally:
            self.keys.update(self._history.trust.known)

    def valid(self) -> list[tuple[Decision, Trust]]:
        """Return the decisions up to the first one that is not valid, as they were read last, and
        the keys after each."""
        return self._history.valid()

    def trust(self) -> Trust:
        """Return the keys after the last decision. Raises as `history`."""
        self.history()
        return self._history.trust

    def desired(self) -> DesiredState:
        """Return the desired state; an empty one before the first decision."""
        last = self.last()
        return DesiredState() if last is None else last.decision.standing

    def serving(self) -> Artifact | None:
        """Return the stable version; None before the first one."""
        stable = self.desired().stable
        return None if stable is None else self._pinned(stable)

    def decide(
        self,
        key: Ed25519PrivateKey,
        kind: Kind,
        desired: DesiredState,
        after: Release | None,
        *,
        model: str | None = None,
        reason: str = "",
        evidence: Mapping[str, float] | None = None,
        run: str = "",
    ) -> Release:
        """Store the decision that follows `after`; raise Stale if another one does, UsageError for
        a revoked key."""
        signer = key_id(key.public_key())
        if after is not None and signer in after.decision.standing.revoked:
            raise UsageError(f"key {signer} is revoked, devices refuse its decisions: use another")
        decision = Decision(
            task=self.task,
            task_version=self.task_version,
            seq=1 if after is None else after.decision.seq + 1,
            prev=ZERO if after is None else after.digest,
            kind=kind,
            model=model,
            reason=reason[:1000],
            evidence=dict(evidence or {}),
            run=run,
            time_us=time.time_ns() // 1000,
            key=signer,
            standing=desired,
        )
        release = sign(decision, key)
        self.append(release)
        return release

    def append(self, release: Release) -> None:
        """Store a signed decision that follows the last one; raise Stale if another one does."""
        seq = release.decision.seq
        try:
            self.store.create(f"history/{seq:08d}.json", release.encode())
        except FileExistsError as exc:
            raise Stale(f"another process has made decision {seq}") from exc

    def serve(self, model: str, key: Ed25519PrivateKey, reason: str, **more: Any) -> Release:
        """Verify a stored version and decide that all devices serve it."""
        artifact, after = self.load(model), self.last()
        before = DesiredState() if after is None else after.decision.standing
        desired = before.replace(
            **NOT_OFFERED,
            stable=Ref.of(artifact),
            candidate=None,
            withdrawn={m: why for m, why in before.withdrawn.items() if m != model},
        )
        return self.decide(key, "served", desired, after, model=model, reason=reason, **more)

    def _pinned(self, ref: Ref) -> Artifact:
        artifact = self.load(ref.model)
        if artifact.digest != ref.digest:
            raise ArtifactError("digest", f"{ref.model} is not the decided artifact")
        return artifact

    def _read(self, name: str, model: str) -> bytes:
        try:
            return self.store.read(name)
        except FileNotFoundError as exc:
            raise ArtifactError("missing", f"no model {model} in {self.where}") from exc
        except OSError as exc:
            raise ArtifactError("missing", f"{self.where}/{name} cannot be read: {exc}") from exc


def _model_file(model: str) -> str:
    if not model.replace("-", "").isalnum():
        raise ArtifactError("name", f"{model!r} is not a name of a model version")
    return f"models/{model}.twa"


def _number(model: str) -> int:
    number = model.partition("-")[0]
    return int(number) if number.isdecimal() else 0
