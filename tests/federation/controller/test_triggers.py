from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.controller.fleet_evidence import RECENT, FleetEvidence, TriggerRules
from federation.controller.triggers import RunsSoFar, TriggerDecision, decide, kind_of
from streams.contract.window_metrics import WindowMetric
from streams.contract.window_report import ClassAgreement, DriftReport, ModelWindow, WindowReport
from streams.fleet.agreement import SeenReports
from tests.rig.made_up.documents import window_report

RULES = TriggerRules(limit=0.9, min_events=100, min_devices=2, patience=2, drift_windows=3)
NOW = datetime(2026, 1, 5, 12).timestamp()


def window(
    device: str, number: int, agreeing: int, model: str = "1-a", revision: int = 0
) -> WindowReport:
    part = ModelWindow(events=60, compared=50, agreeing=agreeing)
    return window_report(device, number, {model: part}, revision=revision)


def unscored(report: WindowReport, labelled: int, correct: int) -> WindowReport:
    """The same with `upload="prediction"`: no teacher was asked."""
    part = ModelWindow(events=60, agreeing=0, labelled=labelled, correct=correct)
    changes = {"teacher_model": "", "models": {"1-a": part}}
    return report.replace(**changes)


def evidence(*reports: WindowReport, rules: TriggerRules = RULES) -> FleetEvidence:
    found, once = FleetEvidence(rules), SeenReports()
    found.serve("1-a")
    for report in filter(once.is_new, reports):  # as the controller's view lets them through
        found.add_window(report)
    return found


def test_true_labels_judge_where_no_teacher_is_asked() -> None:
    def seen(correct: int) -> TriggerDecision:
        reports = [window(d, n, 0) for n in range(4) for d in ("d0", "d1")]
        found = evidence(*(unscored(report, 20, correct) for report in reports))
        return decide(RULES, found, RunsSoFar(), NOW, NOW)

    assert seen(correct=12).cause == (
        "agreement with true labels of 1-a is 0.600 in 160 events from 2 devices, "
        "below 0.900 (Task.retrain)"
    )
    assert seen(correct=19).cause is None
    nothing = evidence(*(unscored(window(d, 0, 0), 0, 0) for d in ("d0", "d1")))
    assert (nothing.events, nothing.devices) == (0, 0)


def both(number: int, agreeing: int, model: str = "1-a") -> list[WindowReport]:
    return [window(f"d{i}", number, agreeing, model) for i in (0, 1)]


def drifting(device: str, number: int, alarm: bool = True, decided: bool = True) -> WindowReport:
    drift = DriftReport(
        windows=1, segments=50, decided=decided, alarm=alarm, worst="acc-x", share=0.5
    )
    return window(device, number, 50).replace(drift=drift)


LOW = (*both(0, 40), *both(1, 40))


def reason(seen: FleetEvidence, runs: RunsSoFar | None = None, now_s: float = NOW) -> str | None:
    found = decide(seen.rules, seen, runs or RunsSoFar(), now_s, NOW)
    return found.cause if found.start else None


def erring(device: str, number: int, error: float, metric: WindowMetric = "mae") -> WindowReport:
    """50 answers, each with that error."""
    part = ModelWindow(events=60, compared=50, agreeing=0, error=50 * error)
    found = window(device, number, 0)
    return found.replace(models={"1-a": part}, metric=metric)


@pytest.mark.parametrize(("metric", "sums", "told"), [("mae", 3.0, "MAE"), ("rmse", 9.0, "RMSE")])
def test_errors_above_the_limit_are_a_cause(metric: WindowMetric, sums: float, told: str) -> None:
    rules = replace(RULES, metric=metric, limit=2.0)

    def seen(error: float, windows: int = 3) -> FleetEvidence:
        reports = [erring(d, n, error, metric) for n in range(windows) for d in ("d0", "d1")]
        return evidence(*reports, rules=rules)

    said = f"{told} from the teacher of 1-a is 3.000 in 300 events from 2 devices, above 2.000"
    assert reason(seen(sums)) == f"{said} (Task.retrain)"
    assert reason(seen(sums / 4)) is None
    # two of four devices err, and the mean hides it
    mixed = [
        erring(f"d{i}", n, sums * 1.2 if i < 2 else 0.0, metric)
        for n in range(12)
        for i in range(9)
    ]
    found = evidence(*mixed, rules=rules)
    assert not found.is_bad
    assert "(d0, d1), each above 3.000" in str(reason(found))


def test_windows_with_another_metric_do_not_count() -> None:
    rules = replace(RULES, metric="rmse", limit=1.0)
    seen = evidence(*LOW, *(erring(d, n, 9.0) for n in range(9) for d in "ab"), rules=rules)
    assert (seen.events, reason(seen)) == (0, None)


def labels(device: str, number: int, labelled: int, correct: int) -> WindowReport:
    """Labels of a window's events that came when it had been reported."""
    part = ModelWindow(events=0, agreeing=0, labelled=labelled, correct=correct)
    return window_report(device, number, {"1-a": part}, revision=1)


def test_labels_that_come_later_judge_once_half_of_the_events_have_one() -> None:
    """And nothing is judged by both: the teacher agrees with every answer, no label does."""
    told = [window(d, n, 50) for n in range(4) for d in ("d0", "d1")]
    late = [labels(d, n, 25, 0) for n in range(4) for d in ("d0", "d1")]
    for known in range(len(late) + 1):
        found = evidence(*told, *late[:known])
        by_labels = 2 * 25 * known >= 50 * len(told)
        assert (found.called, found.value, found.events) == (
            ("agreement with true labels", 0.0, 25 * known)
            if by_labels
            else ("agreement with the teacher", 1.0, 400)
        )
    replaced = [labels(d, n, 0, 25) for n in range(4) for d in ("d0", "d1")]
    assert (found := evidence(*told, *late, *replaced)).value == 0.0, "the same revision"
    again = [each.replace(revision=2) for each in replaced]
    assert ((found := evidence(*told, *late, *again)).value, found.events) == (1.0, 200)


def test_balanced_accuracy_sees_the_rare_class() -> None:
    """97 of 100 answers are right, and none of those in the rare class."""

    def rare(device: str, number: int, right: int) -> WindowReport:
        classes = {
            "low": ClassAgreement(events=97, agreeing=97),
            "high": ClassAgreement(events=3, agreeing=right),
        }
        part = ModelWindow(events=100, compared=100, agreeing=97 + right, classes=classes)
        changed = {"models": {"1-a": part}, "metric": "balanced_accuracy"}
        return window(device, number, 0).replace(**changed)

    rules = replace(RULES, metric="balanced_accuracy")
    blind = evidence(*(rare(d, n, 0) for n in range(3) for d in ("d0", "d1")), rules=rules)
    assert reason(blind) == (
        "balanced agreement with the teacher of 1-a is 0.500 in 600 events from 2 devices, "
        "below 0.900 (Task.retrain)"
    )
    seeing = evidence(*(rare(d, n, 3) for n in range(3) for d in ("d0", "d1")), rules=rules)
    assert reason(seeing) is None
    other = rare("d0", 9, 0)
    both = {**other.models, "2-b": ModelWindow(events=50, compared=50, agreeing=50)}
    seeing.add_window(other.replace(models=both))
    assert seeing.events == 700  # those of the other version do not count


def test_a_quarter_of_the_events_says_that_there_may_be_a_cause_soon() -> None:
    rules = replace(RULES, min_events=400, min_interval_s=60.0)

    def soon(*reports: WindowReport, runs: RunsSoFar | None = None) -> bool:
        found = decide(rules, evidence(*reports, rules=rules), runs or RunsSoFar(), NOW, NOW)
        assert found.cause is None
        return found.soon

    assert soon(*both(0, 40))
    assert not soon(*both(0, 46))  # it is good
    assert not soon(window("d0", 0, 40))  # 50 events
    assert not soon(window("d0", 0, 40), window("d0", 1, 40))  # of one device
    assert not soon(*both(0, 40), runs=RunsSoFar(running=True))
    assert not soon(*both(0, 40), runs=RunsSoFar(starts_s=(NOW - 59,)))  # a budget holds it back
    found = evidence(*(report for n in range(5) for report in both(n, 40)), rules=rules)
    assert reason(found) is not None
    found.run_began(NOW)
    assert not decide(rules, found, RunsSoFar(), NOW, NOW).soon
    for report in both(9, 40):
        found.add_window(report)
    assert not decide(rules, found, RunsSoFar(), NOW, NOW).soon  # the run has answered it


def test_what_is_no_cause() -> None:
    few_devices = evidence(*(window("d0", n, 0) for n in range(30)))
    few_events = evidence(window("d0", 0, 0), window("d1", 0, 0), rules=TriggerRules(0.9))
    good = evidence(*(report for n in range(9) for report in both(n, 45)))
    other = evidence(*(report for n in range(9) for report in both(n, 0, "2-b")))
    for case in (few_devices, few_events, good, other, FleetEvidence(RULES)):
        assert reason(case) is None


def test_one_noisy_look_starts_nothing() -> None:
    seen = evidence(*both(0, 40))
    assert (seen.bad_looks, reason(seen)) == (1, None)
    for report in both(1, 50):  # on the whole 0.9 again
        seen.add_window(report)
    assert seen.bad_looks == 0
    for report in both(2, 30):
        seen.add_window(report)
    assert (seen.bad_looks, reason(seen)) == (1, None)


def test_low_agreement_causes_one_run_until_it_was_good_again() -> None:
    seen = evidence(*LOW)
    seen.run_began(NOW)
    for n in range(2, 6):
        for report in both(n, 40):
            seen.add_window(report)
    assert seen.is_bad
    assert reason(seen) is None
    for n in range(6, 40):
        for report in both(n, 48):
            seen.add_window(report)
    for n in range(40, 60):
        for report in both(n, 30):
            seen.add_window(report)
    assert reason(seen) is not None


def test_low_agreement_is_a_cause_again_with_another_model_or_after_long() -> None:
    for model, later_s in (("1-a", 3600.0), ("2-b", 0.0)):
        seen = evidence(*LOW)
        seen.run_began(NOW)
        seen.serve(model)
        for n in range(2, 6):
            for report in both(n, 40, model):
                seen.add_window(report)
        assert reason(seen, now_s=NOW + later_s) is not None
        assert later_s == 0.0 or reason(seen, now_s=NOW + later_s - 1) is None


def test_weak_devices_that_the_mean_hides_are_a_cause_once() -> None:
    def weeks(first: int, weak: int) -> list[WindowReport]:
        return [
            window(f"d{i}", n, weak if i < 2 else 50)
            for n in range(first, first + 12)
            for i in range(9)
        ]

    seen = evidence(*weeks(0, 35))
    assert seen.value > 0.9
    said = reason(seen)
    assert said == (
        "agreement with the teacher of 1-a is 0.700 at worst on 2 devices (d0, d1), "
        "each below 0.800 (Task.retrain is 0.900)"
    )
    seen.run_began(NOW)
    for report in weeks(12, 35):
        seen.add_window(report)
    assert len(seen.weak) == 2
    assert reason(seen) is None
    for report in weeks(24, 45) + weeks(36, 30):
        seen.add_window(report)
    assert reason(seen) is not None


@pytest.mark.parametrize(
    ("labelled", "name"),
    [
        (("d0", "d1"), "agreement with true labels"),
        (("d0",), "agreement with the teacher or true labels"),
    ],
)
def test_weak_devices_are_named_by_what_judges_them_not_by_what_judges_the_fleet(
    labelled: tuple[str, ...], name: str
) -> None:
    def report(device: str, number: int) -> WindowReport:
        agreeing = 35 if device in ("d0", "d1") else 50
        taught = window(device, number, agreeing)
        return unscored(taught, 50, agreeing) if device in labelled else taught

    seen = evidence(*(report(f"d{i}", n) for n in range(12) for i in range(9)))
    assert seen.called == "agreement with the teacher"
    assert str(reason(seen)).startswith(f"{name} of 1-a is 0.700 at worst on 2 devices (d0, d1), ")


def test_drift_of_enough_devices_is_a_cause_once_an_episode() -> None:
    seen = evidence(*(drifting(f"d{i}", n) for n in range(2) for i in range(3)))
    assert reason(seen) is None
    for i in range(2):
        seen.add_window(drifting(f"d{i}", 2))
    assert reason(seen) == "the inputs of 2 devices drift (d0, d1), at least 3 windows in a row"
    seen.run_began(NOW)
    seen.serve("2-b")
    seen.serve("1-a")
    for n in range(3, 30):
        for i in range(2):
            seen.add_window(drifting(f"d{i}", n))
    assert reason(seen) is None  # it lasts
    for n, alarm in ((30, False), (31, True), (32, True), (33, True)):
        for i in range(2):
            seen.add_window(drifting(f"d{i}", n, alarm))
    assert reason(seen) is not None


@pytest.mark.parametrize("kind", ["drifting", "weak"])
def test_of_a_large_fleet_a_share_of_the_devices_is_a_cause(kind: str) -> None:
    """Not two of a hundred, as of three: in ten thousand there are always two."""

    def seen(devices: int) -> str | None:
        found = evidence(*(window(f"d{i:02}", n, 50) for n in range(12) for i in range(100)))
        found.fleet = 100
        for n in range(12, 24):
            for i in range(devices):
                told = window(f"d{i:02}", n, 35)
                found.add_window(told if kind == "weak" else drifting(f"d{i:02}", n))
        return reason(found)

    assert seen(4) is None
    assert f" {seen(5)} ".count(" 5 devices ") == 1


def test_the_share_is_of_all_devices_also_when_few_have_answered_with_the_served_version() -> None:
    found = evidence(*(window(f"d{i:02}", n, 50) for n in range(12) for i in range(100)))
    found.fleet = 100
    for n in range(12, 24):
        for i in range(4):
            found.add_window(drifting(f"d{i:02}", n))
    found.serve("2-b")
    for i in range(4, 14):
        found.add_window(window(f"d{i:02}", 24, 50, "2-b"))
    assert found.is_enough
    assert reason(found) is None


def test_drift_ends_with_a_report_that_decides_so_and_can_be_no_cause() -> None:
    seen = evidence(*(drifting(f"d{i}", n) for n in range(3) for i in range(2)))
    seen.add_window(drifting("d0", 3, alarm=False, decided=False))
    assert len(seen.drifting) == 2
    seen.add_window(drifting("d0", 4, alarm=False))
    assert list(seen.drifting) == ["d1"]


def test_budgets_hold_back_and_say_which() -> None:
    low = evidence(*LOW)
    cases = [
        (RULES, RunsSoFar(True, (0.0,)), "a run is active"),
        (
            RULES,
            RunsSoFar(False, (NOW - 59,)),
            "the last run began less than 60 s ago (--min-interval)",
        ),
        (RULES, RunsSoFar(False, (NOW - 61,)), None),
        (
            RULES,
            RunsSoFar(False, (), NOW - 9, "no route"),
            "the last attempt failed less than 10 s ago (no route)",
        ),
        (RULES, RunsSoFar(False, (), NOW - 11, "no route"), None),
        (
            TriggerRules(0.9, runs_per_day=2),
            RunsSoFar(False, (NOW - 3600, NOW - 7200, NOW - 90_000)),
            "2 runs began in the last 24 hours, 2 are allowed (--runs-per-day)",
        ),
        (TriggerRules(0.9, runs_per_day=2), RunsSoFar(False, (NOW - 3600, NOW - 90_000)), None),
    ]
    for rules, runs, held_back in cases:
        found = decide(replace(rules, min_events=100), low, runs, NOW, NOW)
        assert found.held_back == held_back
        assert found.start == (held_back is None)
        assert found.cause is not None


def test_by_hand_passes_every_budget_but_a_run_that_is_going_on() -> None:
    rules = TriggerRules(0.9, runs_per_day=0)
    seen = FleetEvidence(rules)
    seen.ask("manual: new sensors", NOW)
    assert decide(rules, seen, RunsSoFar(True, (NOW - 1,)), NOW, NOW).start is False
    found = decide(rules, seen, RunsSoFar(False, (NOW - 1,)), NOW, NOW)
    assert (found.start, found.cause) == (True, "manual: new sensors")
    seen.run_began(NOW + 1)
    assert seen.asked is None


def test_what_was_asked_before_a_run_is_answered_in_any_order() -> None:
    seen = FleetEvidence(RULES)
    seen.run_began(NOW)
    seen.ask("old", NOW - 10)
    assert seen.asked is None
    seen.ask("new", NOW + 10)
    seen.run_began(NOW)
    assert seen.asked == "new"


def test_a_window_that_comes_again_counts_once_and_revisions_sum() -> None:
    low = evidence(LOW[0], LOW[0], window("d0", 0, 10, revision=1))
    assert (low.events, low.value) == (100, 0.5)


def test_a_schedule_counts_from_the_last_run_or_from_the_start() -> None:
    seen = FleetEvidence(TriggerRules(limit=0.9, schedule_s=100.0))
    assert reason(seen, now_s=NOW + 99) is None
    assert reason(seen, now_s=NOW + 100) is not None
    before = RunsSoFar(False, (NOW - 50,))
    assert reason(seen, before, NOW + 49) is None
    assert reason(seen, before, NOW + 51) is not None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99), st.integers(0, 50)), max_size=200))
def test_the_agreement_is_a_share_over_recent_windows(rows: list[tuple[int, int, int]]) -> None:
    seen = evidence(*(window(f"d{d}", n, agreeing) for d, n, agreeing in rows))
    assert 0 <= seen.value <= 1
    counted: dict[int, dict[int, int]] = {}
    for d, n, agreeing in rows:
        counted.setdefault(d, {}).setdefault(n, agreeing)
    last = [list(windows.values())[-RECENT:] for windows in counted.values()]
    assert seen.events == 50 * sum(map(len, last))
    assert seen.value * seen.events == pytest.approx(sum(map(sum, last)))


def test_a_reason_that_refuses_again_makes_runs_wait_twice_as_long() -> None:
    waits = []
    for refused in range(5):
        runs = RunsSoFar(starts_s=(NOW,), refused=refused, reason="on devices 0.80 → 0.80")
        seconds = range(1, 2000)
        waits.append(
            next(s for s in seconds if decide(RULES, evidence(*LOW), runs, NOW + s, NOW).start)
        )
    assert waits == [60, 60, 120, 240, 480]
    held = decide(
        RULES, evidence(*LOW), RunsSoFar(starts_s=(NOW,), refused=3, reason="why"), NOW + 61, NOW
    )
    assert held.held_back is not None
    assert "had no result for one reason (why)" in held.held_back
    assert "more labels" in held.held_back


def test_figures_do_not_make_another_reason() -> None:
    found = {kind_of(f"on devices 0.8{n} → 0.81 gains less than 0.010") for n in range(5)}
    assert len(found) == 1
    assert kind_of("on devices 0.80 → 0.90 may be chance (3 segments better)") not in found
