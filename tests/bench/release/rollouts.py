"""`python -m tests.bench.release.rollouts [--quick]`: how often the judge of rollouts errs.

Real people's windows, answered by real models, in simulated rollouts: who is in the canary, where
in the recordings each device stands, and how long its past is, are drawn by lot; windows of all
devices arrive in turn. What is judged is one stage, looked at whenever each device has closed a
window, until it passes or goes back, or `WINDOWS` are over. Recordings repeat, as in a replay.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from federation.rollout.stage_policy import StageRules, StageVerdict, evaluate
from federation.rollout.window_history import WindowHistory
from streams.contract.documents import ClassAgreement, ModelWindow, WindowReport
from streams.contract.task import load_task
from streams.runtime.disk import cache_folder
from tests.bench.release.answers import People, Window, fine_tuned, read, share, worse_by

TASK = "streams.tasks.har:task"
STABLE, CANDIDATE = "1-stable", "2-candidate"
SOON, VERY_BAD = 2, 0.3
WINDOWS = 100  # a device, of a rollout
SEEDS = 3  # of fine-tuned models: the first is the stable one
EVEN = 0.01  # agreements that differ by less are equally good
LOSSES = {"worse by 5 points": 0.05, "worse by 25 points": 0.25, "worse by 45 points": 0.45}
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
    """windows: of each canary device, that the verdict took. bad_soon: whether the first SOON were
    VERY_BAD points below what was expected, and no verdict came before."""

    finding: StageVerdict
    windows: int
    bad_soon: bool


USUAL = Rollout(3, (60, 120))
OTHERS = (Rollout(2, (60, 120)), Rollout(5, (60, 120)), Rollout(3, (10, 30)))


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


def roll_out(
    fleet: Fleet, rollout: Rollout, stable: str, candidate: str, seed: int, windows: int = WINDOWS
) -> Outcome:
    """One rollout, until there is a verdict."""
    dice = np.random.default_rng(seed)
    names = sorted(fleet.windows)
    canary = {names[i] for i in dice.permutation(len(names))[: rollout.canary]}
    begins = {name: int(dice.integers(0, 1000)) for name in names}
    began = int(dice.integers(*rollout.before))
    heard, soon = WindowHistory(), False
    for t in range(began):
        for name in names:
            heard.add(fleet.report(name, begins[name] + t, stable, STABLE), t * SECOND)
    for t in range(began, began + windows):
        for name in names:
            new = name in canary
            model, version = (candidate, CANDIDATE) if new else (stable, STABLE)
            heard.add(fleet.report(name, begins[name] + t, model, version), t * SECOND)
        finding = evaluate(
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
        if t - began + 1 == SOON:
            soon = finding.evidence["expected"] - finding.evidence["agreement"] >= VERY_BAD
        if finding.verdict != "wait":
            break
    return Outcome(finding, t - began + 1, soon)


def rollouts(count: int, kinds: Sequence[Rollout]) -> dict[str, dict[str, float]]:
    """By rollout and candidate: verdicts of `count` rollouts, windows a device, agreements."""
    fleet, agreements, stable = _fleet()
    found = {}
    for kind in kinds:
        for candidate, agreement in agreements.items():
            done = [roll_out(fleet, kind, stable, candidate, seed) for seed in range(count)]
            took = sorted(outcome.windows for outcome in done)
            verdicts = [outcome.finding.verdict for outcome in done]
            found[f"{candidate}; {kind.name}"] = {
                "rollouts": float(len(done)),
                "agreement": agreement,
                "agreement_stable": agreements[stable],
                "went_back": float(verdicts.count("roll-back")),
                "passed": float(verdicts.count("go-on")),
                "undecided": float(verdicts.count("wait")),
                "windows_median": float(took[len(took) // 2]),
                "windows_95": float(took[int(0.95 * (len(took) - 1))]),
                "windows_most": float(took[-1]),
                "within_two": float(sum(windows <= SOON for windows in took)),
                "very_bad_missed": float(sum(o.bad_soon and o.windows > SOON for o in done)),
            }
            _say(f"{candidate}; {kind.name}: {found[f'{candidate}; {kind.name}']}")
    return found


def _fleet() -> tuple[Fleet, dict[str, float], str]:
    """The people's windows with every candidate's agreement, and the candidates' means."""
    torch.set_num_threads(1)
    task = load_task(TASK)
    with tempfile.TemporaryDirectory() as folder:
        people = read(TASK, task, Path(folder), cache_folder())
    models = _models(people)
    agreements = {name: share(agreement) for name, agreement in models.items()}
    return Fleet(people.windows(models), task.classes), agreements, "the same weights"


def _models(people: People) -> dict[str, list[np.ndarray]]:
    stable, *others = fine_tuned(people, range(1, SEEDS + 1))
    found = {"the same weights": people.agreement(stable)}
    for i, weights in enumerate(others, 2):
        agreement = people.agreement(weights)
        if abs(share(agreement) - share(found["the same weights"])) < EVEN:
            found[f"another seed, {i}"] = agreement
    for name, loss in LOSSES.items():
        found[name] = worse_by(people, stable, loss, seed=1)[1]
    return found


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.release.rollouts")
    parser.add_argument("--quick", action="store_true", help="20 rollouts of one kind")
    parser.add_argument("--rollouts", type=int, default=100, help="of each kind and candidate")
    parser.add_argument("--json", type=Path, help="where the figures go")
    asked = parser.parse_args()
    kinds = [USUAL] if asked.quick else [USUAL, *OTHERS]
    found = rollouts(20 if asked.quick else asked.rollouts, kinds)
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
