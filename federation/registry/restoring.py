"""A registry restored from a backup: what it lacks is taken from the topics.

Devices have accepted decisions that are newer than the backup, and refuse others with the same
numbers. `releases` has each decision, so a controller that begins to lead compares:

1. find the decisions that follow the registry's last one, up to the newest that its own key signed,
   and verify them as the registry's chain is verified
2. fetch the versions and the teacher that the last of them needs from `artifacts`
3. store the decisions, oldest first
4. if devices would refuse the registry's last decision, or it lacks a revocation, do not start

After a crash the next start does what is missing.
"""

import logging
from collections.abc import Iterable, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from federation.registry.registry import Registry
from streams.contract.artifact import key_id
from streams.contract.decisions import Delivery, DesiredState, Ref, Release
from streams.contract.errors import ArtifactError
from streams.contract.topics import RELEASES, topic_name
from streams.kafka.artifact_download import Download, fetch
from streams.kafka.settings import BrokerSettings

log = logging.getLogger(__name__)


def restore(
    settings: BrokerSettings,
    registry: Registry,
    own: Ed25519PublicKey,
    announced: Sequence[Release],
    last: Release | None,
) -> None:
    """Steps 1 to 3; last: the release under the task's name. Raises Retryable for a slow broker,
    and ArtifactError for a decision that is not valid."""
    common, lost = _lost(registry, own, announced)
    if not lost or common != len(registry.history()):
        return
    trust = registry.trust()
    for release in lost:
        trust = trust.after(release.verified(trust.known, registry.task))
    registry.keys.update(trust.known)
    _restore_bytes(settings, registry, lost[-1].decision.standing, last.deliveries if last else [])
    for release in lost:
        registry.append(release.replace(deliveries=[]))
    log.warning(
        "%s ended with decision %d, as a restored backup does: those up to %d are restored from "
        "`releases`", registry.where, common, lost[-1].decision.seq,
    )  # fmt: skip


def _restore_bytes(
    settings: BrokerSettings,
    registry: Registry,
    desired: DesiredState,
    deliveries: Sequence[Delivery],
) -> None:
    """Step 2; what cannot be restored is named."""
    stored, teacher = registry.models(), registry.teacher()
    versions = [ref for ref in (desired.stable, desired.offered) if ref]
    missing = [(ref, "model") for ref in versions if ref.model not in stored]
    if desired.teacher is not None and (teacher is None or Ref.of(teacher) != desired.teacher):
        missing.append((desired.teacher, "teacher"))
    for ref, kind in missing:
        whole = (d for d in deliveries if d.model == ref.model and not (d.base or d.of_part))
        try:
            if (delivery := next(whole, None)) is None:
                raise ArtifactError("missing", "it is not on `artifacts`")
            delivery.check_bound(ref)
            data = fetch(settings, registry.id, Download(delivery), lambda: False)
            if Ref.of(registry.verify(data, kind)) != ref:
                raise ArtifactError("digest", "`artifacts` has other bytes of it")
            (registry.add_teacher if kind == "teacher" else registry.add)(data)
        except ArtifactError as exc:
            log.error("%s of the lost decisions is not restored: %s", ref.model, exc)


def check_history(registry: Registry, own: Ed25519PublicKey, announced: Sequence[Release]) -> None:
    """Step 4: raise ArtifactError if devices may have accepted announced decisions that the
    registry does not have, and so refuse its last one."""
    common, lost = _lost(registry, own, announced)
    last = len(registry.history())
    if not lost or (newest := lost[-1].decision.seq) + 1 < last:
        return
    topic = topic_name(registry.id, RELEASES)
    advice = (
        f"remove history/{common + 1:08d}.json and all later ones, start the controller, which "
        "restores those of the topic, and decide again"
        if common
        else f"use the registry that made it, or delete {topic} and wipe each device (`tidewheel "
        "edge wipe`)"
    )
    raise ArtifactError(
        "history",
        f"{registry.where} does not have decision {newest} of {topic}, and devices that accepted "
        f"it refuse decision {last}: {advice}",
    )


def _lost(
    registry: Registry, own: Ed25519PublicKey, announced: Sequence[Release]
) -> tuple[int, list[Release]]:
    """Return the announced decisions that the registry lacks, oldest first, up to the newest of the
    `own` key, and the number of the registry's decision that they follow; 0 if it has none.

    Only the newest has to be signed by the own key. Each names the one before it in `prev`, which
    another key may have signed.
    """
    ours = {release.digest: release.decision.seq for release in registry.history()}
    signer, version = key_id(own), registry.task_version
    mine = [
        release for release in announced
        if release.digest not in ours
        and release.decision.task_version == version
        and _is_signed(release, signer, own, registry.task)
    ]  # fmt: skip
    known = {release.digest: release for release in [*announced, *mine]}
    chain: list[Release] = []
    at = max(mine, key=lambda release: release.decision.seq).digest if mine else ""
    while at not in ours and (release := known.get(at)) is not None:
        chain.append(release)
        at = release.decision.prev
    return ours.get(at, 0), chain[::-1]


def _is_signed(release: Release, signer: str, key: Ed25519PublicKey, task: str) -> bool:
    try:
        return bool(release.verified({signer: key}, task))
    except ArtifactError:
        return False


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
            "`releases` does: others have written the registry, or it is new: restore a backup, or "
            f"if it is new run `tidewheel keys revoke {lost[0]}`",
        )


def revoked_by(
    registry: Registry, own: Ed25519PublicKey, announced: Iterable[Release]
) -> dict[str, int]:
    """Return the keys that decisions of the `own` key revoke, and in which decision last."""
    signer, found = key_id(own), dict[str, int]()
    for release in announced:
        decision = release.decision
        revoked = decision.standing.revoked
        if revoked and _is_signed(release, signer, own, registry.task):
            found |= dict.fromkeys(revoked, decision.seq)
    return found
