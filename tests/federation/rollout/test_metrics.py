"""The canary decides by the task's metric: errors of numbers, and classes that count the same.

The rates are of made-up fleets with fixed seeds: devices with errors of different sizes, windows
that differ by a factor of log-normal 0.3, heavy tails (Student's t with 4 degrees of freedom).
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from federation.rollout.stage_policy import StageRules, StageVerdict, evaluate
from federation.rollout.window_history import WindowHistory
from streams.contract.window_metrics import WindowMetric
from streams.contract.window_report import ClassAgreement, ModelWindow, WindowReport
from tests.rig.made_up.documents import window_report

STABLE, CANDIDATE = "1-a", "2-b"
BEGAN, SECOND = 10**9, 10**6
DEVICES, CANARY = 10, 3
PAST, WINDOWS, EVENTS = 40, 60, 24
FLEETS = 40


def report(
    device: int, number: int, model: str, metric: WindowMetric, events: int = EVENTS, **more: Any
) -> WindowReport:
    part = ModelWindow.of_fields({"events": events, "compared": events, "agreeing": 0, **more})
    return window_report(f"d{device}", number, {model: part}, metric=metric)


def judged(rules: StageRules, history: WindowHistory, now: int) -> StageVerdict:
    return evaluate(
        rules=rules,
        windows=history,
        candidate=CANDIDATE,
        stable=STABLE,
        began_us=BEGAN,
        stage_began_us=BEGAN,
        now_us=BEGAN + now * SECOND,
        canary=lambda name: int(name[1:]) < CANARY,
        refusals={},
        offered=CANARY,
    )


Sum = Callable[[int, float], tuple[int, float]]  # device, factor -> events, sum of their errors


def judge(metric: WindowMetric, errors: Sum, factor: float) -> tuple[StageVerdict, int]:
    """Roll out a candidate whose errors are `factor` times those before; also return after how many
    windows of each device it was judged."""
    history = WindowHistory(metric=metric)

    def hear(number: int, at_us: int, model: str, devices: range, factor: float = 1.0) -> None:
        for device in devices:
            events, total = errors(device, factor)
            found = report(device, number, model, metric, events, error=total)
            history.add(found, at_us)

    for n in range(PAST):
        hear(n, n * SECOND, STABLE, range(DEVICES))
    for n in range(WINDOWS):
        hear(PAST + n, BEGAN + n * SECOND, CANDIDATE, range(CANARY), factor)
        hear(PAST + n, BEGAN + n * SECOND, STABLE, range(CANARY, DEVICES))
        if n % 2 == 0:
            continue
        found = judged(StageRules(metric=metric), history, n)
        if found.verdict != "wait":
            break
    return found, n + 1


def rollout(seed: int, metric: WindowMetric, factor: float) -> tuple[StageVerdict, int]:
    """One of numbers, see above."""
    dice = np.random.default_rng(seed)
    scales = 20 * np.exp(dice.normal(0, 0.5, DEVICES))

    def errors(device: int, factor: float) -> tuple[int, float]:
        wave = np.exp(dice.normal(0, 0.3))
        found = dice.standard_t(4, EVENTS) * scales[device] * factor * wave
        return EVENTS, float((found**2 if metric == "rmse" else np.abs(found)).sum())

    return judge(metric, errors, factor)


@pytest.mark.parametrize("metric", ["mae", "rmse"])
def test_a_larger_error_goes_back_and_a_smaller_one_passes(metric: WindowMetric) -> None:
    def verdicts(factor: float) -> Counter[str]:
        return Counter(rollout(seed, metric, factor)[0].verdict for seed in range(FLEETS))

    equal, worse, better = verdicts(1.0), verdicts(1.5), verdicts(0.8)
    assert equal["roll-back"] <= 0.1 * FLEETS
    assert worse["roll-back"] >= 0.95 * FLEETS
    assert worse["go-on"] == 0
    assert better["go-on"] >= 0.9 * FLEETS
    assert better["roll-back"] == 0


def test_reports_with_another_metric_are_not_mixed_in() -> None:
    history = WindowHistory(metric="rmse")
    history.add(report(0, 1, STABLE, "mae"), SECOND)
    assert list(history.parts(9)) == []


@pytest.mark.parametrize(
    ("metric", "verdict"), [("accuracy", "go-on"), ("balanced_accuracy", "roll-back")]
)
def test_a_rare_class_counts_as_much_as_others(metric: WindowMetric, verdict: str) -> None:
    """Of 100 events three are frauds; the candidate misses most, and is better at the others."""
    dice, history = np.random.default_rng(1), WindowHistory(metric=metric)

    def hear(number: int, at_us: int, model: str, device: int) -> None:
        new = model == CANDIDATE
        right = int(dice.binomial(3, 0.2 if new else 0.9))
        fine = int(dice.binomial(97, 0.99 if new else 0.97))
        classes = {
            "fine": ClassAgreement(events=97, agreeing=fine),
            "fraud": ClassAgreement(events=3, agreeing=right),
        }
        sums = {"agreeing": fine + right, "classes": classes}
        history.add(report(device, number, model, metric, 100, **sums), at_us)

    for n in range(60):
        for device in range(DEVICES):
            hear(n, n * SECOND, STABLE, device)
    for n in range(40):
        for device in range(DEVICES):
            model = CANDIDATE if device < CANARY else STABLE
            hear(100 + n, BEGAN + n * SECOND, model, device)
    assert judged(StageRules(metric=metric), history, 40).verdict == verdict


def ranked(seed: int, factor: float) -> str:
    """The verdict on a candidate that is far from the teacher `factor` times as often: by default
    on three of 100 events, as where one class is rare."""
    dice = np.random.default_rng(seed)
    often = 0.03 * np.exp(dice.normal(0, 0.4, DEVICES))

    def distances(device: int, factor: float) -> tuple[int, float]:
        far = dice.random(60) < often[device] * factor
        found = np.where(far, dice.uniform(0.2, 1, 60), dice.uniform(0, 0.02, 60))
        return 60, float(found.sum())

    return judge("brier", distances, factor)[0].verdict


def test_a_ranking_is_judged_by_brier_distances() -> None:
    def verdicts(factor: float) -> Counter[str]:
        return Counter(ranked(seed, factor) for seed in range(20))

    assert verdicts(1.0)["roll-back"] <= 2
    assert verdicts(2.0)["roll-back"] == 20
    assert verdicts(0.6)["go-on"] >= 19
