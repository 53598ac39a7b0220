"""Signed invitations of devices to a federated run, on `invitations`; key: the run.

An idle device has no Flower process. A run names the devices that it wants, and the SuperLink where
they join it; it repeats its invitation while it goes on, and says when it is over (`ended`).

The text is UTF-8 JSON (`Invitation`), signed with ed25519 over the bytes "TWINVITE1\\n" + text by a
key that may sign decisions. A device follows an invitation if

1. a trusted key signed it
2. it is about the device's task and task version
3. it has not expired, by the device's clock, which may be wrong by CLOCK_SPARE_S
4. it was issued after every other one of the same run that the device has followed

so a replayed one starts nothing. The last one of each run is kept until it has expired
(`Followed`). How long a device takes part is a duration (`lease_s`) from when it received the
invitation, so that a wrong clock does not prolong it.
"""

from collections.abc import Sequence
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from streams.contract.artifact import check_signature, key_id
from streams.contract.decisions import KeyId
from streams.contract.documents import END, Document, Micros, Signature, SignedText, signed_text
from streams.contract.errors import ArtifactError, MalformedRecord

SIGNED = b"TWINVITE1\n"
CLOCK_SPARE_S = 300.0
LEASE_MOST_S = 3600.0
PLACE = rf"^([^\s:]+|\[[0-9a-fA-F:]+\]):[0-9]{{1,5}}{END}"
NAMES = 10_000  # of one invitation; a message holds them


PullSeconds = Annotated[float, Meta(ge=0.05, le=600)]


class Invitation(Document):
    """`devices` may take part in `run`, whose SuperLink is at `superlink` (HOST:PORT), for
    `lease_s` after they have received it, and ask for work every `pull_s`. `replaces`: the run that
    this one resumes, "" for none."""

    task: str
    task_version: int
    run: Annotated[str, Meta(pattern=rf"^[0-9]{{1,20}}{END}")]
    superlink: Annotated[str, Meta(pattern=PLACE)]
    devices: Annotated[list[str], Meta(max_length=NAMES)]
    issued_us: Micros
    lease_s: Annotated[float, Meta(gt=0, le=LEASE_MOST_S)]
    pull_s: PullSeconds = 1.0
    replaces: str = ""
    ended: bool = False
    key: KeyId = "0" * 16


class SignedInvitation(Document):
    """An invitation as it is on the topic."""

    text: SignedText
    signature: Signature

    def verified(self, trusted: Sequence[Ed25519PublicKey]) -> Invitation:
        """Return the invitation; raise ArtifactError unless a trusted key signed it."""
        keys = {key_id(key): key for key in trusted}
        text = self.text.encode()
        check_signature("invitation", SIGNED, text, bytes.fromhex(self.signature), keys)
        try:
            return Invitation.decode(text)
        except MalformedRecord as exc:
            raise ArtifactError("invitation", str(exc)) from exc


def sign_invitation(invitation: Invitation, key: Ed25519PrivateKey) -> SignedInvitation:
    """Return the invitation signed with `key`, whose ID it names."""
    named = invitation.replace(key=key_id(key.public_key()))
    text = signed_text(named)
    return SignedInvitation(text=text, signature=key.sign(SIGNED + text.encode()).hex())


class Followed(Document):
    """What a device has followed: the time of issue of each run's last invitation, and when that
    one expires, microseconds. last_us: when the first invitation to the last run was issued."""

    runs: dict[str, tuple[Micros, Micros]] = {}
    last_us: Micros | None = None

    def refusal(self, invitation: Invitation, task: str, version: int, now_us: int) -> str | None:
        """Return why an invitation that a trusted key signed is not followed at `now_us`, a
        reason to count; None if it is."""
        if (invitation.task, invitation.task_version) != (task, version):
            return "task"
        if invitation.issued_us + _spare_us(invitation) < now_us:
            return "expired"
        last = self.runs.get(invitation.run)
        if last is not None and invitation.issued_us <= last[0]:
            return "replayed"
        return None

    def after(self, invitation: Invitation, now_us: int) -> "Followed":
        """Return what is followed after `invitation`; forgets what has expired."""
        kept = {run: last for run, last in self.runs.items() if last[1] >= now_us}
        until = invitation.issued_us + _spare_us(invitation)
        last_us = self.last_us if invitation.run in self.runs else invitation.issued_us
        runs = {**kept, invitation.run: (invitation.issued_us, until)}
        return Followed(runs=runs, last_us=last_us)


def _spare_us(invitation: Invitation) -> int:
    return int(1e6 * (invitation.lease_s + CLOCK_SPARE_S))
