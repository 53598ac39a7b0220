"""The rollout of a candidate, from a few devices to all, or back: one decision after the other.

`step` reads the desired state from the registry, the fleet and the windows, and makes the next
decision if one is due:

    candidate   -> stage 1            once a device is present
    stage n     -> stage n+1, served  if the canary's windows show that it is not worse
                -> rolled-back        if they show that it is worse, or devices go back themselves
                -> stage n            without a result in time: with other devices where its own do
                                      not answer, with twice as many, at most half of the fleet,
                                      where the windows speak for the version
                -> held               otherwise; the evaluation continues
    held        -> as a stage, which it is again when its devices return; a waiting candidate
                   replaces it
    served      -> rolled-back        if many devices keep an earlier version (`declined`)
    paused      -> rolled-back        as a stage; nothing else until a person resumes it

A stage's share refers to the devices that answer, at least one, ordered by
decisions.rollout_position, so a growing share only adds devices. Stages that add no device are
skipped. A candidate is dropped unless its base is the stable version.

A device that keeps an earlier version has evidence that the released one is worse there
(`Training.choice`). If LEAST devices do, and the share SHARE of those that serve it, the canary was
misled.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.registry.manual import before_stable
from federation.registry.registry import NOT_OFFERED, Registry
from federation.rollout.stage_policy import (
    ENDED,
    StageRules,
    StageVerdict,
    evaluate,
    without_hope,
)
from federation.rollout.window_history import WindowHistory
from streams.contract.decisions import (
    WITHDRAWN,
    Decision,
    DesiredState,
    Kind,
    Ref,
    Release,
    rollout_position,
)
from streams.contract.documents import DeviceState
from streams.contract.errors import ArtifactError
from streams.fleet.agreement import Odds
from streams.fleet.view import FleetView
from streams.fleet.wording import listed

LEAST, SHARE = 3, 0.5

LARGEST = 1e6  # of odds in the view

log = logging.getLogger(__name__)


def declined(present: Iterable[DeviceState], stable: str) -> str | None:
    """Return why the stable version is not served further; None if too few devices decline it."""
    serving = [state for state in present if state.active == stable]
    others = [state.challenger for state in serving if state.challenger is not None]
    keeping = sum(c.answers and c.origin == "previous" and c.base == stable for c in others)
    if keeping < LEAST or keeping < SHARE * len(serving):
        return None
    return f"{keeping} of {len(serving)} devices keep an earlier version, which is better there"


@dataclass(frozen=True)
class Plan:
    """shares: of the fleet, ending with 1; rules: of a stage's evaluation."""

    shares: tuple[float, ...] = (0.05, 0.25, 1.0)
    rules: StageRules = field(default_factory=StageRules)


@dataclass
class Rollout:
    """The rollouts of one registry, with one signing key."""

    registry: Registry
    key: Ed25519PrivateKey
    plan: Plan
    clock: Callable[[], float] = time.time
    _read: tuple[str, list[Decision]] = ("", [])  # up to which decision, and all of them

    def step(self, last: Release, fleet: FleetView, windows: WindowHistory) -> Release | None:
        """Make and return the next decision after `last`; None if none is due. Raises Stale if
        another process has made one."""
        desired = last.decision.standing
        if desired.offered is not None:
            return self._advance(last, desired.offered, fleet, windows)
        if desired.candidate is not None:
            return self._begin(last, desired.candidate, fleet)
        return None if desired.stable is None else self._decline(last, desired.stable, fleet)

    def began_us(self, last: Release) -> int | None:
        """Return when the version that is offered was first offered; None if none is."""
        offered = last.decision.standing.offered
        words = self._words(last, offered) if offered is not None else []
        return next((d.time_us for d in words if d.kind == "stage"), None)

    def is_free(self, last: Release) -> bool:
        """Return whether another candidate may come: none waits, and none is offered except one
        that the controller holds."""
        desired = last.decision.standing
        if desired.candidate is not None or desired.paused is not None:
            return False
        return desired.offered is None or self._words(last, desired.offered)[-1].kind == "held"

    def _decline(self, last: Release, stable: Ref, fleet: FleetView) -> Release | None:
        """Take the stable version back if many devices decline it and there is one before."""
        why = declined(fleet.present(self.clock()), stable.model)
        earlier = before_stable(self.registry, self.registry.decisions()) if why else None
        if why is None or earlier is None:
            return None
        after = last.decision.standing.without(stable.model, why)
        after = after.replace(**NOT_OFFERED, stable=earlier)
        reason = f"{why}; {earlier.model} is served again"
        return self._decide(last, "rolled-back", after, stable, reason)

    def _begin(self, last: Release, candidate: Ref, fleet: FleetView) -> Release | None:
        desired = last.decision.standing
        stable = desired.stable.model if desired.stable else None
        try:
            manifest = self.registry.manifest(candidate)
        except ArtifactError as exc:
            return self._drop(last, candidate, f"it cannot be offered: {exc}")
        if manifest.key in desired.revoked:
            return self._drop(last, candidate, f"its key {manifest.key} is revoked")
        if manifest.base != stable:
            reason = f"its base is {manifest.base}, but {stable} is served now"
            return self._drop(last, candidate, reason)
        found = self._next_stage(fleet, 0, 0)
        return None if found is None else self._offer(last, candidate, fleet, found)

    def _advance(
        self, last: Release, offered: Ref, fleet: FleetView, windows: WindowHistory
    ) -> Release | None:
        """Evaluate the current stage, and make the decision that follows."""
        words, desired = self._words(last, offered), last.decision.standing
        stages = [d.time_us for d in words if d.kind == "stage"]
        held, paused = words[-1].kind == "held", desired.paused is not None
        if held and not paused and desired.candidate is not None:
            return self._roll_back(last, offered, f"replaced by {desired.candidate.model}", {})
        finding = self._finding(desired, offered, fleet, windows, stages)
        match finding.verdict:
            case "roll-back":
                return self._roll_back(last, offered, finding.reason, finding.evidence)
            case "go-on" if not paused:
                return self._move_on(last, offered, fleet, finding)
            case "hold" if not paused and (wider := self._wider(desired, fleet, finding)):
                return self._offer(last, offered, fleet, *wider)
            case "wait" if held and not paused:  # devices that had ended answer again
                about = finding.reason, finding.evidence
                return self._decide(last, "stage", desired, offered, *about)
            case "hold" if not held:  # a pause is `held` too
                about = finding.reason, finding.evidence
                return self._decide(last, "held", desired, offered, *about)
        return None

    def _wider(
        self, desired: DesiredState, fleet: FleetView, finding: StageVerdict
    ) -> tuple[tuple[int, float, int], StageVerdict] | None:
        """Return an undecided stage with more devices, and why; None: there are none for it."""
        answering = [s for s in self._answering(fleet) if s.phase not in ENDED]
        among = _among(answering, fleet.task, desired.share)
        if answering and not among:
            gone = listed(sorted(state.device for state in fleet.within(desired.share)))
            finding = replace(finding, reason=f"no more answers of {gone}; {finding.reason}")
            found = self._next_stage(fleet, desired.stage - 1, 0)
            return None if found is None else (found, finding)
        count, shown = min(2 * among, (len(answering) + 1) // 2), finding.evidence
        if count <= among or shown["e_fine"] <= shown["e_worse"]:
            return None
        return (desired.stage, _share_of(self._positions(fleet), count), count), finding

    def _answering(self, fleet: FleetView) -> list[DeviceState]:
        """Return the present devices whose readings have not ended, or all if all have."""
        present = fleet.present(self.clock())
        return [s for s in present if s.phase not in ENDED] or present

    def _move_on(
        self, last: Release, offered: Ref, fleet: FleetView, finding: StageVerdict
    ) -> Release:
        desired = last.decision.standing
        among = _among(self._answering(fleet), fleet.task, desired.share)
        found = self._next_stage(fleet, desired.stage, among) if desired.share < 1 else None
        if found is not None:
            return self._offer(last, offered, fleet, found, finding)
        after = desired.replace(**NOT_OFFERED, stable=offered)
        return self._decide(last, "served", after, offered, finding.reason, finding.evidence)

    def _offer(
        self,
        last: Release,
        model: Ref,
        fleet: FleetView,
        found: tuple[int, float, int],
        finding: StageVerdict | None = None,
    ) -> Release:
        """Offer `model` in the stage from `_next_stage`; `finding` is that of the stage before."""
        stage, share, count = found
        fields: dict[str, object] = {"offered": model, "share": share, "stage": stage}
        if finding is None:
            fields["candidate"] = None
        after = last.decision.standing.replace(**fields)
        reason = f"offered to {_devices(count, self._answering(fleet))}"
        if finding is None:
            return self._decide(last, "stage", after, model, reason, self.plan.rules.bounds)
        reason = f"{reason}: {finding.reason}"
        return self._decide(last, "stage", after, model, reason, finding.evidence)

    def _next_stage(
        self, fleet: FleetView, stage: int, among: int
    ) -> tuple[int, float, int] | None:
        """Return the next stage with more than `among` devices: its number, share and devices."""
        positions = self._positions(fleet)
        for number, wanted in enumerate(self.plan.shares[stage:] if positions else (), stage + 1):
            count = max(1, math.ceil(wanted * len(positions)))
            if count > among:
                share = 1.0 if wanted >= 1 else _share_of(positions, count)
                return number, share, count
        return None

    def _positions(self, fleet: FleetView) -> list[float]:
        return sorted(rollout_position(fleet.task, s.device) for s in self._answering(fleet))

    def _finding(
        self,
        desired: DesiredState,
        offered: Ref,
        fleet: FleetView,
        windows: WindowHistory,
        stages: list[int],
    ) -> StageVerdict:
        """Evaluate the stage, and note what was found in the view."""
        now_s, states = self.clock(), fleet.within(desired.share)
        refusals = {
            s.device: reason
            for s in states
            if (reason := s.refused.get(offered.model)) and not reason.startswith(WITHDRAWN)
        }

        @cache
        def canary(device: str) -> bool:
            return rollout_position(fleet.task, device) < desired.share

        windows.began_us = stages[0]
        found = evaluate(
            self.plan.rules,
            windows,
            candidate=offered.model,
            stable=desired.stable.model if desired.stable else "",
            began_us=stages[0],
            stage_began_us=stages[-1],
            now_us=int(now_s * 1e6),
            canary=canary,
            refusals=refusals,
            offered=max(len(states), 1),
        )
        phases = {s.device: s.phase for s in states}
        found = without_hope(found, phases, now_s - stages[-1] / 1e6)
        odds = (min(found.evidence.get(name, 1.0), LARGEST) for name in ("e_worse", "e_fine"))
        fleet.evidence.note(offered.model, found.reason, Odds(int(now_s * 1e6), *odds))
        return found

    def _words(self, last: Release, offered: Ref) -> list[Decision]:
        """Return the decisions about the offered version, up to `last`."""
        if self._read[0] != last.digest:
            self._read = last.digest, self.registry.decisions()
        return [d for d in self._read[1] if d.model == offered.model]

    def _roll_back(
        self, last: Release, offered: Ref, reason: str, evidence: Mapping[str, float]
    ) -> Release:
        after = last.decision.standing.replace(**NOT_OFFERED)
        after = after.without(offered.model, reason)
        return self._decide(last, "rolled-back", after, offered, reason, evidence)

    def _drop(self, last: Release, candidate: Ref, reason: str) -> Release:
        after = last.decision.standing.replace(candidate=None)
        return self._decide(last, "dropped", after, candidate, reason)

    def _decide(
        self,
        last: Release,
        kind: Kind,
        desired: DesiredState,
        about: Ref,
        reason: str,
        evidence: Mapping[str, float] | None = None,
    ) -> Release:
        log.info("%s %s: %s", kind, about.model, reason)
        return self.registry.decide(
            self.key, kind, desired, last, model=about.model, reason=reason, evidence=evidence
        )


def _among(states: Iterable[DeviceState], task: str, share: float) -> int:
    """Return how many are among this first share of the fleet."""
    return sum(rollout_position(task, s.device) < share for s in states)


def _share_of(positions: Sequence[float], count: int) -> float:
    """Return the share of the fleet in which the first `count` are."""
    return min(1.0, positions[count - 1] + 2**-32)


def _devices(count: int, present: Sequence[DeviceState]) -> str:
    return f"{count} of {len(present)} device{'s' * (len(present) != 1)}"
