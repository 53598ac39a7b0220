import random
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.rollout.stage_policy import (
    SETTLED_S,
    StageRules,
    StageVerdict,
    evaluate,
    without_hope,
)
from federation.rollout.window_history import WindowHistory
from streams.contract.window_report import ClassAgreement, ModelWindow, WindowReport
from streams.fleet.agreement import SeenReports
from tests.rig.made_up.documents import window_report
from tests.rig.made_up.tiny_task import task
from tidewheel import Tumbling

STABLE, CANDIDATE = "1-a", "2-b"
BEGAN, SECOND = 1_000_000_000, 1_000_000
DEVICES = ("d0", "d1", "d2", "d3", "d4", "d5")
CANARY = ("d0", "d1")
Heard = tuple[WindowReport, int]


def window(
    device: str,
    number: int,
    agreeing: int,
    model: str = STABLE,
    events: int = 20,
    revision: int = 0,
) -> WindowReport:
    part = ModelWindow(events=events, compared=events, agreeing=agreeing)
    return window_report(device, number, {model: part}, revision=revision)


def past(agreeing: int = 16, windows: int = 30) -> list[Heard]:
    """Windows of all devices before the rollout; they vary by one event up or down."""
    return [
        (window(device, n, agreeing + (n + i) % 3 - 1), n * SECOND)
        for n in range(windows)
        for i, device in enumerate(DEVICES)
    ]


def since(canary: int, others: int = 16, windows: int = 5) -> list[Heard]:
    """Windows since the rollout began, the canary's by the candidate."""
    found = []
    for n in range(windows):
        for i, device in enumerate(DEVICES):
            new, wave = device in CANARY, (n + i) % 3 - 1
            report = window(
                device, 100 + n, (canary if new else others) + wave, CANDIDATE if new else STABLE
            )
            found.append((report, BEGAN + n * SECOND))
    return found


def finding(
    heard: list[Heard],
    rules: StageRules = StageRules(),  # noqa: B008
    refusals: dict[str, str] | None = None,
    offered: int = len(CANARY),
    waited_s: float = 60.0,
    stage_began_us: int = BEGAN,
    canary: Sequence[str] = CANARY,
) -> StageVerdict:
    windows = WindowHistory()
    for report, heard_us in heard:
        windows.add(report, heard_us)
    return evaluate(
        rules=rules,
        windows=windows,
        candidate=CANDIDATE,
        stable=STABLE,
        began_us=BEGAN,
        stage_began_us=stage_began_us,
        now_us=stage_began_us + int(waited_s * SECOND),
        canary=canary.__contains__,
        refusals=refusals or {},
        offered=offered,
    )


def test_nothing_was_answered_yet() -> None:
    found = finding([])
    assert (found.verdict, found.evidence["events"]) == ("wait", 0)
    assert found.reason.startswith("canary continues: no window answered by 2-b yet")


def test_a_useless_version_goes_back_within_two_windows_a_device() -> None:
    found = finding([*past(), *since(canary=5, windows=2)])
    assert found.verdict == "roll-back"
    assert "canary failed: 2 devices, 4 windows, agreement with the teacher 0.2" in found.reason
    assert found.evidence["expected"] == pytest.approx(0.8, abs=0.02)


def unscored(heard: list[Heard]) -> list[Heard]:
    """The same with `upload="prediction"`: the labels say what the teacher would have said."""
    return [(
        report.replace(teacher_model="", models={
            name: ModelWindow(events=m.events, agreeing=0, labelled=m.compared, correct=m.agreeing)
            for name, m in report.models.items()
        }), at,
    ) for report, at in heard]  # fmt: skip


@pytest.mark.parametrize(("canary", "verdict"), [(5, "roll-back"), (16, "go-on")])
def test_true_labels_judge_where_no_teacher_is_asked(canary: int, verdict: str) -> None:
    heard = [*past(windows=100), *since(canary=canary, windows=60)]
    found, by_teacher = finding(unscored(heard)), finding(heard)
    assert found.verdict == by_teacher.verdict == verdict
    assert "agreement with true labels 0." in found.reason
    assert "agreement with the teacher 0." in by_teacher.reason
    assert found.evidence["e_worse"] == by_teacher.evidence["e_worse"]
    assert found.evidence["accuracy"] == pytest.approx(canary / 20, abs=0.02)


def test_a_stage_needs_windows_of_its_own() -> None:
    heard = [*past(windows=100), *since(canary=17, windows=60)]
    assert finding(heard).verdict == "go-on"
    later = finding(heard, stage_began_us=BEGAN + 58 * SECOND)
    assert (later.verdict, later.evidence["stage_windows"]) == ("wait", 4)


def test_a_version_that_loses_a_little_goes_back_in_time_and_does_not_pass() -> None:
    heard = [*past(windows=100), *since(canary=14, windows=60)]
    assert finding(heard).verdict == "roll-back"


def test_what_the_others_lose_too_is_not_the_versions_fault() -> None:
    alone = finding([*past(), *since(canary=13, windows=30)])
    together = finding([*past(), *since(canary=13, others=13, windows=30)])
    assert alone.verdict == "roll-back"
    assert together.verdict != "roll-back"
    assert together.evidence["expected"] < alone.evidence["expected"] - 0.08


def behind(heard: list[Heard], adapter: str, devices: tuple[str, ...]) -> list[Heard]:
    """The same, as these devices answer behind an adapter."""
    return [(
        report if report.device not in devices else report.replace(
            models={f"{name}.{adapter}": part for name, part in report.models.items()}
        ), at,
    ) for report, at in heard]  # fmt: skip


@pytest.mark.parametrize(("right", "verdict"), [(12, "roll-back"), (16, "go-on")])
def test_without_a_past_the_others_windows_since_are_the_measure(right: int, verdict: str) -> None:
    """As after a controller's restart, when retention has deleted what was before the rollout."""
    canary, others = ([f"{kind}{n}" for n in range(200)] for kind in ("new", "old"))
    heard = [
        (window(device, 100 + n, of + (n + i) % 3 - 1, model), BEGAN + n * SECOND)
        for n in range(10)
        for devices, of, model in ((canary, right, CANDIDATE), (others, 16, STABLE))
        for i, device in enumerate(devices)
    ]
    found = finding(heard, canary=canary, offered=len(canary))
    assert found.verdict == verdict
    assert found.evidence["expected"] == pytest.approx(0.8, abs=0.01)


def test_what_others_gain_by_adapters_meanwhile_is_not_expected_of_the_canary() -> None:
    outside = tuple(name for name in DEVICES if name not in CANARY)
    heard = [*past(windows=100), *behind(since(canary=17, others=19, windows=60), "a1", outside)]
    found, alone = finding(heard), finding([*past(windows=100), *since(canary=17, windows=60)])
    assert found.verdict == alone.verdict == "go-on"
    assert found.evidence["expected"] == pytest.approx(alone.evidence["expected"], abs=0.01)
    same = [*past(windows=100), *since(canary=17, others=19, windows=60)]
    assert finding(same).evidence["expected"] > found.evidence["expected"] + 0.05


@pytest.mark.parametrize("until", [100, 98])
def test_a_canary_behind_an_adapter_is_compared_with_its_past_behind_it(until: int) -> None:
    """A worse version hides behind no adapter that the stable one had only at last. until: a window
    from which on it answers without, as after a version that was taken back."""
    heard = []  # the canary's devices are at 10 of 20 for forty windows, then at 18 behind one
    for report, at in past(windows=100):
        with_one = 40 <= report.window_us < until
        right = (18 if with_one else 10) + report.window_us % 3 - 1
        own = window(report.device, report.window_us, right)
        each = [(own if report.device in CANARY else report, at)]
        heard += behind(each, "a3", CANARY) if with_one else each
    found = finding([*heard, *behind(since(canary=14, windows=60), "a3", CANARY)])
    assert found.verdict == "roll-back"
    assert found.evidence["expected"] == pytest.approx(0.9, abs=0.03)
    assert finding([*heard, *behind(since(canary=18, windows=60), "a3", CANARY)]).verdict == "go-on"


def with_labels(heard: list[Heard], right: int, new: int, teacher: int) -> list[Heard]:
    """The same with six labelled events a window: so many right, by the candidate, by a teacher."""
    return [(report.replace(models={
        name: m.replace(
            labelled=6, correct=new if name == CANDIDATE else right, teacher_correct=teacher
        ) for name, m in report.models.items()}), at) for report, at in heard]  # fmt: skip


@pytest.mark.parametrize(
    ("agreeing", "right", "new", "teacher", "verdict", "by"),
    [
        (12, 3, 5, 4, "go-on", "true labels"),  # it leaves a teacher that is wrong
        (12, 5, 4, 4, "roll-back", "the teacher"),  # both say that it is worse
        (18, 5, 3, 3, "roll-back", "true labels"),  # it learns what the teacher is wrong in
        (12, 4, 4, 6, "roll-back", "the teacher"),  # which knows better
        (12, 4, 6, 6, "go-on", "true labels"),
        (18, 4, 4, 4, "go-on", "the teacher"),  # which has more events
    ],
)
def test_no_teacher_speaks_against_what_is_right_more_often(
    agreeing: int, right: int, new: int, teacher: int, verdict: str, by: str
) -> None:
    heard = [*past(windows=90), *since(canary=agreeing, windows=60)]
    found = finding(with_labels(heard, right, new, teacher))
    assert found.verdict == verdict
    assert f"agreement with {by} " in found.reason


def test_a_bad_version_is_gone_at_once_though_few_events_have_a_label() -> None:
    heard = with_labels([*past(windows=90), *since(canary=6, windows=3)], 6, 5, 5)
    assert finding(heard).verdict == "roll-back"


def test_labels_show_a_loss_before_a_teacher_does() -> None:
    heard = [*past(windows=90), *since(canary=14, windows=2)]
    assert finding(heard).verdict == "wait"
    found = finding(with_labels(heard, right=6, new=1, teacher=5))
    assert found.verdict == "roll-back"
    assert "agreement with true labels 0.1" in found.reason


def test_labels_that_the_past_does_not_have_show_no_loss() -> None:
    """There is nothing to compare them with."""
    devices = [f"d{i}" for i in range(10)]
    before, since = (
        [(window(name, first + n, 15 + (n + i) % 3, model), at + n * SECOND)
         for n in range(60) for i, name in enumerate(devices)]
        for model, first, at in ((STABLE, 0, 0), (CANDIDATE, 100, BEGAN))
    )  # fmt: skip
    heard = [*before, *with_labels(since, 6, new=1, teacher=5)]
    found = finding(heard, canary=devices, offered=10)
    assert (found.verdict, found.evidence["labelled"]) == ("go-on", 3600)


@pytest.mark.parametrize(("right", "verdict"), [(10, "roll-back"), (16, "go-on")])
def test_an_adapter_from_shortly_before_leaves_a_canary_its_past(right: int, verdict: str) -> None:
    """In the last stage no device adds to the past, and three windows of each are too few."""
    before = past(windows=40)
    late = [each for each in before if each[1] >= 37 * SECOND]
    heard = [*before[: -len(late)], *behind(late, "a1", CANARY)]
    canary = [each for each in since(canary=right, windows=60) if each[0].device in CANARY]
    found = finding([*heard, *behind(canary, "a1", CANARY)])
    assert found.verdict == verdict
    assert found.evidence["expected"] == pytest.approx(0.8, abs=0.03)


def by_class(device: str, number: int, model: str, hard: int, failing: int) -> WindowReport:
    easy, agreeing = 20 - hard, 20 - failing
    classes = {
        name: ClassAgreement(events=events, agreeing=events - failed)
        for name, events, failed in (("easy", easy, 0), ("hard", hard, failing))
        if events
    }
    part = ModelWindow(events=20, compared=20, agreeing=agreeing, classes=classes)
    return window_report(device, number, {model: part})


def test_another_activity_is_not_another_version() -> None:
    """Half of what is hard fails, with both versions, and the canary's people do more of it now."""
    heard = [
        (by_class(device, n, STABLE, hard=4, failing=2), n * SECOND)
        for n in range(60)
        for device in DEVICES
    ]
    heard += [
        (by_class(device, 100 + n, CANDIDATE, hard=16, failing=8), BEGAN)
        for n in range(20)
        for device in CANARY
    ]
    found = finding(heard)
    assert found.verdict != "roll-back"
    assert found.evidence["value"] == pytest.approx(0.6)
    assert found.evidence["expected"] == pytest.approx(0.6, abs=0.03)


def test_of_readings_that_repeat_the_variance_does_not_depend_on_where_they_begin() -> None:
    def varies(first: int) -> float:
        heard = [
            (window(device, n, 4 if n % 12 in (1, 2, 3) else 18), n * SECOND)
            for n in range(first, first + 60)
            for device in DEVICES
        ]
        return finding([*heard, *since(canary=16)]).evidence["dispersion"]

    found = [varies(first) for first in range(12)]
    assert min(found) > 5
    assert max(found) == pytest.approx(min(found), rel=0.1)


def test_an_undecided_stage_is_held_after_a_while() -> None:
    heard = [*past(), *since(canary=15, windows=1)]
    assert finding(heard, StageRules(max_wait_s=100)).verdict == "wait"
    held = finding(heard, StageRules(max_wait_s=100), waited_s=101)
    assert held.verdict == "hold"
    assert held.reason.startswith("canary undecided after 0.0 h: ")


def sparse(canary: int) -> list[Heard]:
    """Windows of two events, before and since the rollout, of which one in four goes wrong; the
    canary's, in one window of `canary` a second one."""
    found = []
    for n in range(960):
        for i, device in enumerate(DEVICES):
            new = n >= 480 and device in CANARY
            agreeing = 2 - (n + i) % 2 - (new and n % canary == 0)
            report = window(device, n, max(agreeing, 0), CANDIDATE if new else STABLE, events=2)
            found.append((report, BEGAN + n * SECOND if n >= 480 else n * SECOND))
    return found


@pytest.mark.parametrize(("canary", "verdict"), [(1000, "go-on"), (7, "roll-back")])
def test_a_canary_of_windows_of_few_events_is_decided(canary: int, verdict: str) -> None:
    found = finding(sparse(canary))
    assert (found.verdict, found.evidence["windows"]) == (verdict, 2 * 480)


def test_a_canary_says_how_many_windows_are_still_missing() -> None:
    """Of a version that is as good: the share of those that show it."""
    shares = []
    for windows in (2, 5, 8):
        found = finding([*past(windows=100), *since(canary=16, windows=windows)])
        assert found.verdict == "wait"
        told = re.search(r"; about (\d+)% of the windows that a decision takes$", found.reason)
        assert told is not None
        shares.append(int(told[1]))
    assert 0 < shares[0] < shares[1] < shares[2] < 100
    decided = finding([*past(windows=100), *since(canary=16, windows=60)])
    assert "a decision takes" not in decided.reason


@pytest.mark.parametrize(("longest_s", "max_wait_s"), [(30.0, 6 * 3600), (86_400.0, 864_000)])
def test_a_stage_waits_for_some_of_its_tasks_windows(longest_s: float, max_wait_s: float) -> None:
    own = replace(task, window=Tumbling(longest_s))
    assert StageRules().of_task(own).max_wait_s == max_wait_s


def test_devices_that_refuse_are_evidence() -> None:
    heard = [*past(), *since(canary=16)]
    refused = finding(heard, refusals={"d1": "crashed three times"}, offered=9)
    assert refused.verdict == "roll-back"
    assert refused.reason == "1 of 9 devices refuse 2-b: d1: crashed three times"
    assert finding(heard, refusals={"d1": "crashed"}, offered=10).verdict != "roll-back"


def test_windows_of_two_versions_and_of_other_devices_say_nothing() -> None:
    mixed = window("d0", 100, 0, CANDIDATE)
    both = {**mixed.models, STABLE: ModelWindow(events=5, compared=5, agreeing=5)}
    heard = [(mixed.replace(models=both), BEGAN)]
    heard += [(window("d5", 100, 0, CANDIDATE), BEGAN)]
    assert finding([*past(), *heard]).evidence["windows"] == 0


def test_labels_are_told_beside() -> None:
    report = window("d0", 100, 16, CANDIDATE)
    counts = ModelWindow(events=20, compared=20, agreeing=16, labelled=4, correct=3)
    found = finding([*past(), (report.replace(models={CANDIDATE: counts}), BEGAN)])
    assert found.evidence["accuracy"] == 0.75
    assert "accuracy_before" not in found.evidence


heards = st.lists(
    st.tuples(
        st.sampled_from(DEVICES),
        st.integers(0, 40),
        st.integers(0, 1),
        st.integers(0, 20),
        st.booleans(),
    ),
    max_size=80,
    unique_by=lambda row: row[:3],
)


@given(heards, st.integers(0, 2**32), st.integers(1, 12), st.none() | st.integers(0, 25))
@settings(deadline=None)
def test_order_and_repetition_change_nothing(
    rows: list[tuple[str, int, int, int, bool]], seed: int, kept: int, began_us: int | None
) -> None:
    """What is kept, too: a report that was let go does not come back."""
    reports = [
        (window(device, n, agreeing, CANDIDATE if new else STABLE, revision=revision), n)
        for device, n, revision, agreeing, new in rows
    ]
    dice = random.Random(seed)
    again = reports + dice.sample(reports, len(reports) // 2)
    dice.shuffle(again)
    first, second = WindowHistory(kept), WindowHistory(kept)
    first.began_us = second.began_us = began_us
    for report, heard_us in reports:
        first.add(report, heard_us)
    once = SeenReports()
    for report, heard_us in again:
        if once.is_new(report):  # as the controller's view lets them through
            second.add(report, heard_us)
    for one, other in zip(first.parts(2), second.parts(2), strict=True):
        assert one.devices == other.devices
        assert one.windows.tobytes() == other.windows.tobytes()
        assert one.cells.tobytes() == other.cells.tobytes()
        assert max(one.counts) <= kept


@given(st.integers(0, 20), st.integers(1, 8))
@settings(deadline=None, max_examples=40)
def test_fewer_agreeing_events_are_never_evidence_for_a_version(canary: int, windows: int) -> None:
    def worse(agreeing: int) -> float:
        heard = [
            (window(device, 100 + n, agreeing, CANDIDATE), BEGAN)
            for n in range(windows)
            for device in CANARY
        ]
        return finding([*past(), *heard]).evidence["e_worse"]

    assert worse(max(canary - 1, 0)) >= worse(canary)


def test_a_canary_whose_readings_have_ended_is_undecided_and_says_why() -> None:
    waiting = finding(since(canary=16, windows=2))
    assert waiting.verdict == "wait"
    phases = {"d0": "source ended", "d1": "stopped"}
    found = without_hope(waiting, phases, SETTLED_S)
    assert found.verdict == "hold"
    assert found.reason.startswith(
        "canary undecided: the readings of d0, d1 have ended, no more windows can come; 2 devices"
    )
    assert found.evidence == waiting.evidence
    for other in (
        without_hope(waiting, phases, SETTLED_S - 1),  # its last windows may be on their way
        without_hope(waiting, {**phases, "d2": "running"}, SETTLED_S),
        without_hope(waiting, {}, SETTLED_S),
    ):
        assert other == waiting
    decided = StageVerdict("go-on", "canary passed", {})
    assert without_hope(decided, phases, SETTLED_S) == decided
