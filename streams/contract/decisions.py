"""What has been decided about a task's models: a signed chain, and its head as devices get it.

A decision is one entry of the registry's history. Its text is UTF-8 JSON (`Decision`); it is
signed with ed25519 over the bytes "TWDECISION1\\n" + text, and named by the SHA-256 of the text.
`prev` names the entry before it, ZERO the one before the first: none can be changed, taken out or
put in between without a new signature under every later one.

Each decision carries the whole `Standing`, so that whoever has the last one needs no other: what
all devices serve, what a share of them is offered, what has been taken back, which keys count.

On `releases`, under the key of `decision_key` and, the last one only, under the task's name: a
`Release`, the signed text and where on `artifacts` the bytes are that it needs. Where they are is
not signed: bytes are known by their digest.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field

from streams.contract.documents import Document
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.signing import key_id, verify

ZERO = "0" * 64
SIGNED = b"TWDECISION1\n"
MAX_BYTES = 1 << 30  # of an artifact
WITHDRAWN = "withdrawn: "  # so begins a device's reason for refusing what a decision withdraws
WITHDRAWN_KEPT = 10  # the latest

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Model = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,17}-[0-9a-f]{8}$")]
KeyId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]

Kind = Literal[
    "served",  # `model` is what everyone serves
    "candidate",  # it has passed the gate and waits for its rollout
    "stage",  # it is offered to `standing.share` of the fleet
    "held",  # it stays at its share: the windows have not decided in time
    "rolled-back",  # it is taken back everywhere
    "dropped",  # a candidate that is offered to nobody
    "teacher",  # it is what the workers score with
    "keys",  # other keys count
]


class Ref(Document):
    """An artifact."""

    model: Model
    digest: Digest


class DesiredState(Document):
    """Everything that holds after a decision.

    `stable` is what devices serve that are not in the `share` (0 to 1) that `offered` is offered
    to; `candidate` waits. `withdrawn` versions are served by nobody, with the reason. `keys` (raw,
    hex) count beside those that a process was given, `revoked` ones do not. `url`: artifacts lie
    at <url>/models/<model>.twa too; empty: on Kafka alone.
    """

    stable: Ref | None = None
    offered: Ref | None = None
    share: float = Field(default=0.0, ge=0, le=1)
    stage: int = 0
    candidate: Ref | None = None
    teacher: Ref | None = None
    withdrawn: dict[Model, str] = {}
    keys: dict[KeyId, Digest] = {}
    revoked: list[KeyId] = []
    url: str = ""

    def target(self, task: str, device: str) -> Ref | None:
        """What `device` is to serve."""
        if self.offered is not None and rollout_position(task, device) < self.share:
            return self.offered
        return self.stable

    def without(self, model: str, reason: str) -> "DesiredState":
        """`model` is withdrawn; the latest WITHDRAWN_KEPT are kept."""
        others = {m: why for m, why in self.withdrawn.items() if m != model}
        latest = dict([*others.items(), (model, reason[:300])][-WITHDRAWN_KEPT:])
        return self.model_copy(update={"withdrawn": latest})


def rollout_position(task: str, device: str) -> float:
    """Where a device stands between 0 and 1: in a share if below it. Stable by hash: a growing
    share only adds devices."""
    digest = hashlib.sha256(f"{task}/{device}".encode()).digest()
    return int.from_bytes(digest[:4]) / 2**32


class Decision(Document):
    """One entry. `model` is what it is about, `evidence` the figures that it was made on."""

    format: int = 1
    task: str
    task_version: int
    seq: int = Field(ge=1)
    prev: Digest
    kind: Kind
    model: str | None = None
    reason: str = ""
    evidence: dict[str, float] = {}
    run: str = ""
    time_us: int
    key: KeyId
    standing: DesiredState


class Delivery(Document):
    """Bytes on `artifacts`: `chunks` messages from `offset` on whose key is `sha256`, that of the
    bytes. They are the artifact of `model`, or with `base` what makes it of that version's."""

    model: Model
    base: Model | None = None
    sha256: Digest
    size: int = Field(ge=1, le=MAX_BYTES)
    chunks: int = Field(ge=1, le=MAX_BYTES)
    offset: int = Field(ge=0)


class Release(Document):
    """A signed decision and where its bytes are."""

    text: str = Field(max_length=1 << 20)
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")
    deliveries: list[Delivery] = []

    @property
    def digest(self) -> str:
        """That of the decision."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def decision(self) -> Decision:
        """As it says of itself, without looking at the signature; MalformedRecord."""
        return Decision.decode(self.text.encode())

    def verified(self, trusted: Mapping[str, Ed25519PublicKey], task: str) -> Decision:
        """The decision, signed by one of the `trusted` keys, about `task`; ArtifactError."""
        try:
            signer = str(json.loads(self.text)["key"])
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ArtifactError("decision", "it is no JSON object with a key") from exc
        if signer not in trusted:
            raise ArtifactError("untrusted-key", f"decided by {signer[:16]}, not trusted here")
        data = SIGNED + self.text.encode()
        if not verify(trusted[signer], bytes.fromhex(self.signature), data):
            raise ArtifactError("signature", f"the decision's signature is not by key {signer}")
        try:
            decision = self.decision
        except MalformedRecord as exc:
            raise ArtifactError("decision", str(exc)) from exc
        if decision.format != 1:
            raise ArtifactError(
                "format", f"decision format {decision.format}, this program reads 1"
            )
        if decision.task != task:
            raise ArtifactError("task", f"a decision about task {decision.task}, not {task}")
        return decision


def sign(decision: Decision, key: Ed25519PrivateKey) -> Release:
    """The decision with `key`'s name and signature; nothing is delivered with it yet."""
    named = decision.model_copy(update={"key": key_id(key.public_key())})
    text = json.dumps(named.model_dump(), sort_keys=True, separators=(",", ":"))
    return Release(text=text, signature=key.sign(SIGNED + text.encode()).hex())


def decision_key(task: str, seq: int) -> bytes:
    """The key on `releases` of one decision; the last one is there under the task's name, too."""
    return f"{task}/{seq:08d}".encode()
