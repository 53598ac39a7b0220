"""One simulated rollout: real people's windows, answered by real models.

Who is in the canary, where in the recordings each device stands, and how long its past is, are
drawn by lot; windows of all devices arrive in turn. What is judged is one stage, looked at whenever
each device has closed a window, until it passes or goes back, or `WINDOWS` are over. Recordings
repeat, as in a replay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from federation.rollout.stage_policy import Choice, StageRules, evaluate
from federation.rollout.window_history import WindowHistory
from streams.contract.window_report import ClassAgreement, ModelWindow, WindowReport
from tests.bench.release.answers import Window

STABLE, CANDIDATE = "1-stable", "2-candidate"
WINDOWS = 100  # a device, of a rollout
SECOND = 1_000_000


@dataclass(frozen=True)
class Rollout:
    """canary: devices; before: windows a device in its past, from and below."""

    canary: int
    before: tuple[int, int]

    @property
    def name(self) -> str:
        return f"{self.canary} devices, past of {self.before[0]} to {self.before[1]} windows"


@dataclass(frozen=True)
class Outcome:
    """windows: of each canary device, that the verdict took. `canary` and `models`: of whom it was
    made."""

    verdict: Choice
    windows: int
    canary: tuple[str, ...]
    models: tuple[str, str]


@dataclass(frozen=True)
class Fleet:
    """Windows by device; every model's agreement is in them."""

    windows: Mapping[str, Sequence[Window]]
    classes: Sequence[str]

    @cache  # noqa: B019
    def counts(
        self, device: str, at: int, model: str
    ) -> tuple[int, int, dict[str, ClassAgreement]]:
        window = self.windows[device][at]
        agrees = window.agrees[model]
        by_class = {
            self.classes[kind]: ClassAgreement(
                events=int((window.classes == kind).sum()),
                agreeing=int(agrees[window.classes == kind].sum()),
            )
            for kind in np.unique(window.classes)
        }
        return len(agrees), int(agrees.sum()), by_class

    def report(self, device: str, number: int, model: str, version: str) -> WindowReport:
        at = number % len(self.windows[device])
        events, agreeing, by_class = self.counts(device, at, model)
        return WindowReport(
            task="har",
            device=device,
            window_us=number * SECOND,
            end_us=(number + 1) * SECOND,
            revision=0,
            events=events,
            teacher_model="1-t",
            models={version: ModelWindow(events=events, compared=events, agreeing=agreeing)},
            classes=by_class,
        )

    def __hash__(self) -> int:
        return id(self)


def roll_out(fleet: Fleet, rollout: Rollout, stable: str, candidate: str, seed: int) -> Outcome:
    """One rollout, until there is a verdict."""
    dice = np.random.default_rng(seed)
    names = sorted(fleet.windows)
    canary = {names[i] for i in dice.permutation(len(names))[: rollout.canary]}
    begins = {name: int(dice.integers(0, 1000)) for name in names}
    began = int(dice.integers(*rollout.before))
    heard = WindowHistory()
    for t in range(began):
        for name in names:
            heard.add(fleet.report(name, begins[name] + t, stable, STABLE), t * SECOND)
    for t in range(began, began + WINDOWS):
        for name in names:
            model, version = (candidate, CANDIDATE) if name in canary else (stable, STABLE)
            heard.add(fleet.report(name, begins[name] + t, model, version), t * SECOND)
        found = evaluate(
            rules=StageRules(max_wait_s=1e9),
            windows=heard,
            candidate=CANDIDATE,
            stable=STABLE,
            began_us=began * SECOND,
            stage_began_us=began * SECOND,
            now_us=t * SECOND,
            canary=canary.__contains__,
            refusals={},
            offered=len(canary),
        )
        if found.verdict != "wait":
            break
    return Outcome(found.verdict, t - began + 1, tuple(sorted(canary)), (stable, candidate))
