"""Manual decisions about versions: promote, roll back, pause, resume, remove bytes.

Pausing a rollout:

1. `pause` makes a `held` decision with `paused` in the desired state; devices change nothing
2. the controller reads it, at its next look (2 s) or when it finds that the number is taken
3. it announces the decision, and from 2 on makes no `stage`, `served` or `held` for the version,
   replaces it by no candidate and starts no run; it still takes the version back if it is worse
4. `resume` makes a `stage` with the same stage and share; its limits count from there

After a crash the last decision in the history says whether the rollout is paused, so whichever
controller leads continues from it; before 1 and 4 nothing has changed.

Each checks the current state first, so a repeated call reports that there is nothing to do. Where
there is, `agree` is told before it is decided, and may raise to stop it.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.registry.key_rotation import keys_of, last_decision
from federation.registry.registry import NOT_OFFERED, Registry, Stale
from streams.contract.artifact import Artifact, key_id
from streams.contract.decisions import (
    MANUAL,
    Decision,
    DesiredState,
    Kind,
    Pause,
    Ref,
    Release,
)
from streams.contract.documents import Document
from streams.contract.errors import ArtifactError, UsageError

ASIDE = ("keys", "teacher", "candidate", "dropped")  # kinds that change nothing on devices


ATTEMPTS = 5

Agree = Callable[[str], None]


def agreed(_text: str) -> None:
    """Nobody is asked."""


@dataclass(frozen=True)
class ManualDecision:
    """The result, for a person; `made` is None if there was nothing to do."""

    text: str
    made: Release | None = None


class Pruned(Document):
    """The file pruned/<model>.json: the bytes were removed on purpose, at this time."""

    model: str
    time_us: int


def promote(
    registry: Registry,
    key: Ed25519PrivateKey,
    model: str,
    reason: str = "",
    agree: Agree = agreed,
) -> ManualDecision:
    """Let all devices serve `model`; another offered version is withdrawn."""
    last, ref = last_decision(registry), _usable(registry, model)
    before = last.decision.standing
    if before.stable == ref and before.offered is None and model not in before.withdrawn:
        return ManualDecision(f"all devices serve {model} already: nothing to do")
    after, text = before, f"{model} is served by all devices"
    if before.offered is not None and before.offered != ref:
        after = after.without(before.offered.model, f"{model} was promoted manually")
        text += f", {before.offered.model} is withdrawn"
    kept = {m: why for m, why in after.withdrawn.items() if m != model}
    candidate = None if before.candidate == ref else before.candidate
    fields = {**NOT_OFFERED, "stable": ref, "withdrawn": kept, "candidate": candidate}
    agree(text)
    made = _decide(registry, key, "served", after.replace(**fields), last, model, reason)
    return ManualDecision(text, made)


def propose(
    registry: Registry,
    key: Ed25519PrivateKey,
    artifact: Artifact,
    reason: str,
    evidence: Mapping[str, float],
    run: str = "",
) -> None:
    """Let a stored version wait for its canary; it replaces one that waits, which has the same base
    and is older."""
    ref = Ref.of(artifact)
    for _ in range(ATTEMPTS):
        after = registry.last()
        desired = registry.desired().replace(candidate=ref)
        with suppress(Stale):
            registry.decide(
                key, "candidate", desired, after,
                model=artifact.model, reason=reason, evidence=evidence, run=run,
            )  # fmt: skip
            return
    raise Stale(f"other processes made {ATTEMPTS} decisions in a row")


def roll_back(
    registry: Registry,
    key: Ed25519PrivateKey,
    to: str | None = None,
    reason: str = "",
    agree: Agree = agreed,
) -> ManualDecision:
    """Withdraw the offered version; without one, or with `to`, the stable version."""
    last = last_decision(registry)
    desired = last.decision.standing
    offered, stable = desired.offered, desired.stable
    if to is not None:
        return _roll_back_to(registry, key, to, reason, agree)
    if offered is not None:
        after = desired.without(offered.model, _why(reason)).replace(**NOT_OFFERED)
        model = offered.model
        text = f"{model} is withdrawn, {stable.model if stable else 'none'} stays"
        agree(text)
        made = _decide(registry, key, "rolled-back", after, last, model, reason)
        return ManualDecision(text, made)
    decisions = registry.decisions()
    moved = [d for d in decisions if d.kind not in ASIDE]
    if moved and moved[-1].kind == "rolled-back" and moved[-1].reason.startswith(MANUAL):
        return ManualDecision(
            f"{moved[-1].model} was withdrawn by decision {moved[-1].seq}: nothing to do; "
            "--to MODEL goes further back"
        )
    earlier = before_stable(registry, decisions)
    if stable is None or earlier is None:
        raise UsageError(
            "no earlier version can be served again: each is withdrawn, removed, or signed by a "
            "revoked key; `tidewheel models list` shows them"
        )
    return _roll_back_to(registry, key, earlier.model, reason, agree)


def pause(
    registry: Registry, key: Ed25519PrivateKey, reason: str = "", agree: Agree = agreed
) -> ManualDecision:
    """Keep the offered version at its stage until `resume`; the controller may still withdraw
    it."""
    last = last_decision(registry)
    desired = last.decision.standing
    offered, paused = desired.offered, desired.paused
    if offered is None:
        waits = desired.candidate
        why = f"{waits.model} waits for its first stage" if waits else "no version is in a rollout"
        return ManualDecision(f"{why}: nothing to pause")
    if paused is not None:
        return ManualDecision(f"{offered.model} is paused already, {paused.reason}: nothing to do")
    where = f"stage {desired.stage}"
    text = f"{offered.model} stays at {where}, until it is resumed"
    agree(f"{text}: no device changes, no run starts, and it still goes back if it is worse")
    signer, now_us = key_id(key.public_key()), time.time_ns() // 1000
    paused = Pause(reason=_why(reason)[:300], time_us=now_us, key=signer)
    after = desired.replace(paused=paused)
    made = _decide(registry, key, "held", after, last, offered.model, reason)
    return ManualDecision(text, made)


def resume(
    registry: Registry, key: Ed25519PrivateKey, reason: str = "", agree: Agree = agreed
) -> ManualDecision:
    """End a pause; the stage and its time limit begin again."""
    last = last_decision(registry)
    desired = last.decision.standing
    offered = desired.offered
    if offered is None or desired.paused is None:
        return ManualDecision("no person has paused a rollout: nothing to resume")
    where = f"stage {desired.stage}"
    text = f"{offered.model} goes on from {where}"
    agree(f"{text}: no device changes at once, and the stage's time limit begins again")
    after = desired.replace(paused=None)
    made = _decide(registry, key, "stage", after, last, offered.model, reason)
    return ManualDecision(text, made)


def before_stable(registry: Registry, decisions: Iterable[Decision]) -> Ref | None:
    """Return the last stable version before the current one that is stored and not withdrawn."""
    past = [d.standing for d in decisions]
    if not past:
        return None
    kept, now = set(registry.models()), past[-1]
    for desired in reversed(past):
        ref = desired.stable
        if ref is None or ref == now.stable or ref.model in now.withdrawn:
            continue
        if ref.model in kept and _counts(registry, registry.load(ref.model)):
            return ref
    return None


def needed(registry: Registry, desired: DesiredState) -> set[str]:
    """Return the versions that are current, and their bases."""
    refs = [desired.stable, desired.offered, desired.candidate]
    found = {ref.model for ref in refs if ref is not None}
    for model in sorted(found):
        try:
            base = registry.load(model).manifest.base
        except ArtifactError:
            continue  # `tidewheel models verify` reports it
        if base is not None:
            found.add(base)
    return found


def to_prune(registry: Registry, keep: int) -> list[str]:
    """Return the versions whose bytes can go: not the `keep` newest ones, nor the target of a
    rollback."""
    kept, stays = registry.models(), needed(registry, registry.desired())
    if (earlier := before_stable(registry, registry.decisions())) is not None:
        stays.add(earlier.model)
    return [model for model in kept[: max(0, len(kept) - keep)] if model not in stays]


def prune(registry: Registry, keep: int) -> list[str]:
    """Remove them; their decisions stay. Versions that another process needs meanwhile are kept."""
    removed = []
    for model in to_prune(registry, keep):
        if model in needed(registry, registry.desired()):
            continue
        mark = Pruned(model=model, time_us=time.time_ns() // 1000)
        registry.store.write(f"pruned/{model}.json", mark.encode())
        registry.remove(model)
        removed.append(model)
    return removed


def pruned(registry: Registry) -> set[str]:
    return {name.removesuffix(".json") for name in registry.store.names("pruned")}


def _roll_back_to(
    registry: Registry, key: Ed25519PrivateKey, to: str, reason: str, agree: Agree
) -> ManualDecision:
    last, ref = last_decision(registry), _usable(registry, to)
    desired = last.decision.standing
    gone = [r for r in (desired.offered, desired.stable) if r is not None and r != ref]
    if not gone:
        return ManualDecision(f"all devices serve {to} already: nothing to do")
    after = desired
    for each in gone:
        after = after.without(each.model, _why(reason))
    kept = {m: why for m, why in after.withdrawn.items() if m != to}
    after = after.replace(**NOT_OFFERED, stable=ref, withdrawn=kept)
    model = gone[-1].model
    why = f"{reason}; {to} is served again" if reason else f"{to} is served again"
    names = " and ".join(each.model for each in gone)
    text = f"{names} withdrawn, {to} is served by all devices"
    agree(text)
    made = _decide(registry, key, "rolled-back", after, last, model, why)
    return ManualDecision(text, made)


def _usable(registry: Registry, model: str) -> Ref:
    """Return a stored version that devices would install; raise UsageError otherwise."""
    try:
        artifact = registry.load(model)
    except ArtifactError as exc:
        raise UsageError(f"{exc}: `tidewheel models list` shows the versions") from exc
    if not _counts(registry, artifact):
        raise UsageError(
            f"{model} is signed by key {artifact.manifest.key}, which is not trusted any more: "
            "devices would refuse it"
        )
    return Ref.of(artifact)


def _counts(registry: Registry, artifact: Artifact) -> bool:
    return artifact.manifest.key in keys_of(registry).active


def _decide(
    registry: Registry,
    key: Ed25519PrivateKey,
    kind: Kind,
    desired: DesiredState,
    last: Release,
    model: str,
    reason: str,
) -> Release:
    keys_of(registry).check(key)
    return registry.decide(key, kind, desired, last, model=model, reason=_why(reason))


def _why(reason: str) -> str:
    return f"{MANUAL}: {reason}" if reason else MANUAL
