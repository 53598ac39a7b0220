"""Signed decisions about a task's models: a hash chain, and how `releases` carries it.

A decision is one entry of the registry's history. Its text is UTF-8 JSON (`Decision`), signed with
ed25519 over the bytes "TWDECISION1\\n" + text; its digest is the SHA-256 of the text. `prev` is the
digest of the decision before it (ZERO for the first), so changing, removing or inserting a decision
requires new signatures for all later ones.

Each decision carries the complete DesiredState, so the last decision is enough for a device: the
stable version, the offered version and its share, withdrawn versions, trusted keys.

A revoked key stays revoked. Whoever reads a chain refuses a decision that a revoked key signed, and
one by any key in which a revoked key is not in `revoked` any more (`Trust`).

`releases` carries each decision as a `Release` under `decision_key`, and the last one also under
the task's name. A Release holds the signed text and the positions of the needed bytes on
`artifacts`. The positions are not signed: the bytes are verified by their digest, and nothing is
fetched that is larger than the size of the artifact, which the decision signs.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from streams.contract.artifact import Artifact, check_signature, key_id, public_keys
from streams.contract.documents import (
    END,
    Count,
    Digest,
    Document,
    Micros,
    Share,
    Signature,
    SignedText,
    signed_text,
)
from streams.contract.errors import ArtifactError, MalformedRecord

ZERO = "0" * 64
SIGNED = b"TWDECISION1\n"
MAX_BYTES = 1 << 30  # of an artifact
CHUNK_BYTES = 1 << 10  # at least, of all chunks of a delivery but one
WITHDRAWN = "withdrawn: "  # prefix of a device's reason for refusing a withdrawn version
WITHDRAWN_KEPT = 10  # the latest ones
MANUAL = "manual"  # prefix of a manual decision's reason
SIGNED_AGAIN = "signed again: "  # the same, of the served model under another key
ADVICE = "take away the write access of whoever has that key"

Model = Annotated[str, Meta(pattern=rf"^[1-9][0-9]{{0,17}}-[0-9a-f]{{8}}{END}")]
KeyId = Annotated[str, Meta(pattern=rf"^[0-9a-f]{{16}}{END}")]
Size = Annotated[int, Meta(ge=1, le=MAX_BYTES)]

Kind = Literal[
    "served",  # all devices serve `model`
    "candidate",  # `model` has passed the gate and waits for its rollout
    "stage",  # `model` is offered to `standing.share` of the fleet
    "held",  # the rollout is paused: the windows gave no result in time, or a person wants it
    "rolled-back",  # `model` is withdrawn from all devices
    "dropped",  # the candidate `model` is discarded before its rollout
    "teacher",  # the workers score with `model`
    "keys",  # the trusted keys change
]


class Ref(Document):
    """A reference to an artifact; `size` is that of its bytes."""

    model: Model
    digest: Digest
    size: Size

    @classmethod
    def of(cls, artifact: Artifact) -> "Ref":
        return cls(model=artifact.model, digest=artifact.digest, size=artifact.size)


class Pause(Document):
    """A person's pause of a rollout: the reason, when it began, and the key that signed it."""

    reason: str
    time_us: Micros
    key: KeyId


class DesiredState(Document):
    """The complete desired state after a decision.

    A `share` (0 to 1) of the devices serves `offered`, the others serve `stable`; `candidate` waits
    for its rollout. While a person has `paused` the rollout, `offered` stays at its stage or is
    withdrawn. `withdrawn` maps versions that no device may serve to the reason. `keys` (raw, hex)
    are trusted in addition to the keys that a process was started with, except `revoked` ones.
    `url`: artifacts are also at <url>/models/<model>.twa; empty if they are only on Kafka.
    """

    stable: Ref | None = None
    offered: Ref | None = None
    share: Share = 0.0
    stage: Count = 0
    candidate: Ref | None = None
    paused: Pause | None = None
    teacher: Ref | None = None
    withdrawn: dict[Model, str] = {}
    keys: dict[KeyId, Digest] = {}
    revoked: list[KeyId] = []
    url: str = ""

    def target(self, task: str, device: str) -> Ref | None:
        """Return the version that `device` must serve."""
        if self.offered is not None and rollout_position(task, device) < self.share:
            return self.offered
        return self.stable

    def without(self, model: str, reason: str) -> "DesiredState":
        """Return this state with `model` withdrawn; keeps the latest WITHDRAWN_KEPT."""
        others = {m: why for m, why in self.withdrawn.items() if m != model}
        latest = dict([*others.items(), (model, reason[:300])][-WITHDRAWN_KEPT:])
        return self.replace(withdrawn=latest)


@lru_cache(maxsize=20_000)
def rollout_position(task: str, device: str) -> float:
    """Return a device's position, 0 to 1: the device is in every share above it.

    The position is a hash, so a growing share only adds devices.
    """
    digest = hashlib.sha256(f"{task}/{device}".encode()).digest()
    return int.from_bytes(digest[:4]) / 2**32


class Decision(Document):
    """One entry of the chain, about `model`; `evidence` holds the metrics it is based on."""

    format: int = 1
    task: str
    task_version: Count
    seq: Annotated[int, Meta(ge=1, le=2**53)]
    prev: Digest
    kind: Kind
    model: str | None = None
    reason: str = ""
    evidence: dict[str, float] = {}
    run: str = ""
    time_us: Micros
    key: KeyId
    standing: DesiredState


class Delivery(Document):
    """Where bytes are on `artifacts`: `chunks` messages from `offset` on with the key `sha256`.

    The bytes are the artifact of `model`, or with `base` a delta from that version. of_part: they
    are those of a quantized version without its floats, for devices that do not train.
    """

    model: Model
    base: Model | None = None
    of_part: bool = False
    sha256: Digest
    size: Size
    chunks: Size
    offset: Count

    def check_bound(self, ref: Ref) -> None:
        """Raise ArtifactError if it announces more bytes, or more chunks, than `ref` can need."""
        most = ref.size
        if self.size > most or self.chunks > 1 + self.size // CHUNK_BYTES:
            raise ArtifactError(
                "size",
                f"{self.size} bytes in {self.chunks} chunks are announced for {self.model}; "
                f"at most {most} are fetched",
            )


class Release(Document, dict=True):
    """A signed decision and the positions of its bytes."""

    text: SignedText
    signature: Signature
    deliveries: list[Delivery] = []

    @property
    def digest(self) -> str:
        """The digest of the decision."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def decision(self) -> Decision:
        """The decision, without verifying its signature; raises MalformedRecord."""
        return Decision.decode(self.text.encode())

    def verified(self, trusted: Mapping[str, Ed25519PublicKey], task: str) -> Decision:
        """Return the decision; raise ArtifactError unless a trusted key signed it for `task`."""
        signature = bytes.fromhex(self.signature)
        check_signature("decision", SIGNED, self.text.encode(), signature, trusted)
        try:
            decision = self.decision
        except MalformedRecord as exc:
            raise ArtifactError("decision", str(exc)) from exc
        if decision.format != 1:
            raise ArtifactError(
                "format", f"decision format {decision.format}; this version reads format 1"
            )
        if decision.task != task:
            raise ArtifactError("task", f"the decision is about task {decision.task}, not {task}")
        return decision


@dataclass(frozen=True)
class Trust:
    """The keys that are trusted after some decisions of a chain: the `initial` and the `named` ones
    (IDs), except the `revoked` ones. `known` has all that were trusted at some time."""

    known: Mapping[str, Ed25519PublicKey]
    initial: frozenset[str]
    named: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()

    @classmethod
    def at_first(cls, keys: Mapping[str, Ed25519PublicKey]) -> "Trust":
        """Return the state before the first decision."""
        return cls(dict(keys), frozenset(keys))

    @property
    def active(self) -> dict[str, Ed25519PublicKey]:
        counting = (self.initial | self.named) - self.revoked
        return {name: key for name, key in self.known.items() if name in counting}

    def after(self, decision: Decision) -> "Trust":
        """Return the state after a decision whose signature is valid; raise ArtifactError if its
        key is not trusted, or if it takes back a revocation."""
        about, key = f"decision {decision.seq}", decision.key
        if key in self.revoked:
            raise ArtifactError(
                "revoked", f"{about} is signed by key {key}, which an earlier one revoked: {ADVICE}"
            )
        if key not in self.active:
            raise ArtifactError(
                "untrusted-key", f"{about} is signed by {key}, which is not trusted here"
            )
        if back := sorted(self.revoked - set(decision.standing.revoked)):
            raise ArtifactError(
                "revoked",
                f"{about} trusts key {back[0]} again, which an earlier one revoked: {ADVICE}",
            )
        fresh = public_keys(decision.standing.keys)
        return replace(
            self,
            known={**self.known, **fresh},
            named=frozenset(fresh),
            revoked=frozenset(decision.standing.revoked),
        )


def sign(decision: Decision, key: Ed25519PrivateKey) -> Release:
    """Return the decision signed with `key`, as a Release without deliveries."""
    named = decision.replace(key=key_id(key.public_key()))
    text = signed_text(named)
    return Release(text=text, signature=key.sign(SIGNED + text.encode()).hex())


def decision_key(task: str, seq: int) -> bytes:
    """Return the message key of one decision on `releases`."""
    return f"{task}/{seq:08d}".encode()
