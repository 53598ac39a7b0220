"""The rollout of a candidate, from a few devices to all, or back: one decision after the other.

`step` reads the desired state from the registry, the fleet and the windows, and makes the next
decision if one is due:

    candidate   -> stage 1            once a device is present
    stage n     -> stage n+1, served  if the canary's windows show that it is not worse
                -> rolled-back        if they show that it is worse, or devices go back themselves
                -> held               if there is no result in time; the evaluation continues
    held        -> as a stage; a waiting candidate replaces it

A stage's share refers to the present devices, at least one, ordered by decisions.rollout_position,
so a growing share only adds devices. Stages that add no device are skipped. A candidate whose base
is no longer the stable version is dropped.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.registry.registry import Registry
from federation.rollout.stage_policy import StageRules, StageVerdict, evaluate
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

log = logging.getLogger(__name__)

HEARD_S = 60.0  # after so long without a state a device is not present


@dataclass(frozen=True)
class Plan:
    """shares: of the fleet, ending with 1; rules: of a stage's evaluation."""

    shares: tuple[float, ...] = (0.05, 0.25, 1.0)
    rules: StageRules = field(default_factory=StageRules)


@dataclass
class FleetState:
    """The devices' last states, and when they were received (seconds, wall clock)."""

    heard: dict[str, tuple[DeviceState, float]] = field(default_factory=dict)

    def add(self, state: DeviceState, at_s: float) -> None:
        self.heard[state.device] = state, at_s

    def present(self, now_s: float) -> list[DeviceState]:
        """Return the devices with a recent state that have not stopped."""
        return [
            state
            for state, at in self.heard.values()
            if now_s - at <= HEARD_S and state.phase != "stopped"
        ]


@dataclass
class Rollout:
    """The rollouts of one registry, with one signing key."""

    registry: Registry
    key: Ed25519PrivateKey
    plan: Plan
    clock: Callable[[], float] = time.time
    _read: tuple[str, list[Decision]] = ("", [])  # up to which decision, and all of them

    def step(self, last: Release, fleet: FleetState, windows: WindowHistory) -> Release | None:
        """Make and return the next decision after `last`; None if none is due. Raises Stale if
        another process has made one."""
        desired = last.decision.standing
        if desired.offered is not None:
            return self._judged(last, desired, desired.offered, fleet, windows)
        if desired.candidate is not None:
            return self._begun(last, desired, desired.candidate, fleet)
        return None

    def is_free(self, last: Release) -> bool:
        """Return whether another candidate may come: none waits, and none is offered except a held
        one."""
        desired = last.decision.standing
        if desired.candidate is not None:
            return False
        return desired.offered is None or self._words(last, desired.offered)[-1].kind == "held"

    def _begun(
        self, last: Release, desired: DesiredState, candidate: Ref, fleet: FleetState
    ) -> Release | None:
        try:
            manifest = self.registry.load(candidate.model).manifest
        except ArtifactError as exc:
            return self._dropped(last, desired, candidate, f"it cannot be offered: {exc}")
        stable = desired.stable.model if desired.stable else None
        if manifest.key in desired.revoked:
            reason = f"it is signed by key {manifest.key}, which has been revoked"
            return self._dropped(last, desired, candidate, reason)
        if manifest.base != stable:
            reason = f"it was made of {manifest.base}, and {stable} is served by now"
            return self._dropped(last, desired, candidate, reason)
        found = self._next_stage(fleet, 0, 0)
        if found is None:
            return None
        stage, share, count = found
        after = desired.model_copy(
            update={"offered": candidate, "candidate": None, "share": share, "stage": stage}
        )
        reason = f"offered to {_devices(count, fleet.present(self.clock()))}"
        return self._decide(last, "stage", after, candidate, reason)

    def _judged(
        self,
        last: Release,
        desired: DesiredState,
        offered: Ref,
        fleet: FleetState,
        windows: WindowHistory,
    ) -> Release | None:
        words = self._words(last, offered)
        stages = [d.time_us for d in words if d.kind == "stage"]
        held = words[-1].kind == "held"
        if held and desired.candidate is not None:
            reason = f"held, and {desired.candidate.model} takes its place"
            return self._rolled_back(last, desired, offered, reason, {})
        finding = self._finding(desired, offered, fleet, windows, stages)
        match finding.verdict:
            case "roll-back":
                return self._rolled_back(last, desired, offered, finding.reason, finding.evidence)
            case "go-on":
                return self._moved_on(last, desired, offered, fleet, finding)
            case "hold" if not held:
                return self._decide(
                    last, "held", desired, offered, finding.reason, finding.evidence
                )
        return None

    def _moved_on(
        self,
        last: Release,
        desired: DesiredState,
        offered: Ref,
        fleet: FleetState,
        finding: StageVerdict,
    ) -> Release:
        reason, evidence = finding.reason, finding.evidence
        task, there = self.registry.task, fleet.present(self.clock())
        among = sum(rollout_position(task, s.device) < desired.share for s in there)
        found = self._next_stage(fleet, desired.stage, among) if desired.share < 1 else None
        if found is None:
            after = desired.model_copy(
                update={"stable": offered, "offered": None, "share": 0.0, "stage": 0}
            )
            return self._decide(last, "served", after, offered, reason, evidence)
        stage, share, count = found
        after = desired.model_copy(update={"share": share, "stage": stage})
        reason = f"offered to {_devices(count, fleet.present(self.clock()))}: {reason}"
        return self._decide(last, "stage", after, offered, reason, evidence)

    def _next_stage(
        self, fleet: FleetState, stage: int, among: int
    ) -> tuple[int, float, int] | None:
        """Return the next stage with more than `among` devices: its number, share and devices."""
        task = self.registry.task
        places = sorted(rollout_position(task, s.device) for s in fleet.present(self.clock()))
        if not places:
            return None
        for number, wanted in enumerate(self.plan.shares[stage:], stage + 1):
            count = max(1, math.ceil(wanted * len(places)))
            if count > among:
                share = 1.0 if wanted >= 1 else min(1.0, places[count - 1] + 2**-32)
                return number, share, count
        return None

    def _finding(
        self,
        desired: DesiredState,
        offered: Ref,
        fleet: FleetState,
        windows: WindowHistory,
        stages: list[int],
    ) -> StageVerdict:
        @cache
        def canary(device: str) -> bool:
            return rollout_position(self.registry.task, device) < desired.share

        states = [s for s, _ in fleet.heard.values() if canary(s.device)]
        refusals = {
            s.device: reason
            for s in states
            if (reason := s.refused.get(offered.model)) and not reason.startswith(WITHDRAWN)
        }
        return evaluate(
            self.plan.rules,
            windows,
            candidate=offered.model,
            stable=desired.stable.model if desired.stable else "",
            began_us=stages[0],
            stage_began_us=stages[-1],
            now_us=int(self.clock() * 1e6),
            canary=canary,
            refusals=refusals,
            offered=max(len(states), 1),
        )

    def _words(self, last: Release, offered: Ref) -> list[Decision]:
        """Return the decisions about the offered version, up to `last`."""
        if self._read[0] != last.digest:
            self._read = last.digest, self.registry.decisions()
        return [d for d in self._read[1] if d.model == offered.model]

    def _rolled_back(
        self,
        last: Release,
        desired: DesiredState,
        offered: Ref,
        reason: str,
        evidence: Mapping[str, float],
    ) -> Release:
        after = desired.model_copy(update={"offered": None, "share": 0.0, "stage": 0})
        after = after.without(offered.model, reason)
        return self._decide(last, "rolled-back", after, offered, reason, evidence)

    def _dropped(
        self, last: Release, desired: DesiredState, candidate: Ref, reason: str
    ) -> Release:
        after = desired.model_copy(update={"candidate": None})
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


def _devices(count: int, present: Sequence[DeviceState]) -> str:
    return f"{count} of {len(present)} device{'s' * (len(present) != 1)}"
