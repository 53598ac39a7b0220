"""What labels say of devices by release, and which devices a release made worse."""

from typing import Any

import numpy as np
import pytest

from streams.contract.decisions import ZERO, Decision, DesiredState
from streams.contract.window_metrics import WindowMetric
from streams.contract.window_report import ModelWindow, WindowReport
from streams.fleet.truth import LEAST, Truth, of_class, right, together

CLASSES = ("ST", "ER")


def report(
    device: str,
    release: str,
    table: dict[str, tuple[int, int]],
    others: int = 0,
    window_us: int = 0,
) -> WindowReport:
    """table: right and labelled events by class; others: labelled ones of another release."""
    truth = {name: {name: ok, "other": of - ok} for name, (ok, of) in table.items()}
    labelled = sum(of for _, of in table.values())
    counts = ModelWindow(events=labelled, agreeing=0, labelled=labelled, truth=truth)
    models = {f"{release}.a1": counts}
    if others:
        wrong = {"ST": {"ER": others}}
        models["9-z"] = ModelWindow(events=others, agreeing=0, labelled=others, truth=wrong)
    return WindowReport(
        task="t", device=device, window_us=window_us, end_us=window_us + 1, revision=0,
        events=labelled, teacher_model="", models=models,
    )  # fmt: skip


def seen(*reports: WindowReport) -> Truth:
    found = Truth()
    for each in reports:
        found.add(each)
    return found


def test_a_device_and_its_class_that_a_release_harmed_are_named() -> None:
    before, after = {"ST": (150, 165), "ER": (43, 50)}, {"ST": (135, 165), "ER": (7, 50)}
    found = seen(
        report("d0", "1-a", before), report("d0", "2-b", after),
        report("d1", "1-a", before), report("d1", "2-b", before),
    )  # fmt: skip
    whole, kind = found.worse()
    assert [(w.device, w.kind, w.before, w.after) for w in (whole, kind)] == [
        ("d0", "", "1-a", "2-b"), ("d0", "ER", "1-a", "2-b"),
    ]  # fmt: skip
    assert whole.text == "0.90 → 0.66 on 215 and 215 labels"
    assert kind.text == "class ER: 0.86 → 0.14 on 50 and 50 labels"
    assert right(together(found.of_release("2-b"))) == (142 + 193, 430)
    assert of_class(together(found.of_release("2-b")), "ER") == (50, 100)


@pytest.mark.parametrize("labels", [LEAST, 100, 1000])
def test_chance_harms_nobody(labels: int) -> None:
    dice, named = np.random.default_rng(labels), 0
    for n in range(300):
        tables = [{name: (int(dice.binomial(labels, 0.8)), labels) for name in CLASSES}
                  for _ in range(2)]  # fmt: skip
        found = seen(report(f"d{n}", "1-a", tables[0]), report(f"d{n}", "2-b", tables[1]))
        named += any(found.worse())
    assert named <= 6


def test_of_a_large_fleet_chance_names_nobody_and_a_device_that_was_harmed_is_named() -> None:
    """Each answer is right or wrong twice, as those of neighbouring segments."""
    dice, found = np.random.default_rng(0), Truth()
    for n in range(2000):
        for release in ("1-a", "2-b"):
            right_now = 10 if (n, release) == (7, "2-b") else int(dice.binomial(50, 0.8))
            found.add(report(f"d{n}", release, {"ST": (2 * right_now, 100)}))
    assert {worse.device for worse in found.worse()} == {"d7"}


def measured(
    device: str, release: str, errors: np.ndarray, metric: WindowMetric
) -> list[WindowReport]:
    """A window for each row of errors."""
    return [
        WindowReport(
            task="t", device=device, window_us=i, end_us=i + 1, revision=0, events=len(row),
            teacher_model="", metric=metric,
            models={release: ModelWindow(
                events=len(row), agreeing=0, labelled=len(row), label_error=float(row.sum()),
                correct=int((row < 1).sum()),
            )},
        )
        for i, row in enumerate(errors)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("mae", "MAE 1.116 → 2.231 on 240 and 240 labels"),
        ("rmse", "RMSE 1.056 → 1.494 on 240 and 240 labels"),
        ("within", "0.59 → 0.31 on 240 and 240 labels"),
    ],
)
def test_a_device_whose_errors_a_release_made_larger_is_named(
    metric: WindowMetric, text: str
) -> None:
    errors = np.random.default_rng(0).exponential(1.0, (30, 8))
    found = seen(
        *measured("d0", "1-a", errors, metric), *measured("d0", "2-b", 2 * errors, metric),
        *measured("d1", "1-a", errors, metric), *measured("d1", "2-b", errors[::-1], metric),
        *measured("d2", "1-a", errors[:3], metric), *measured("d2", "2-b", 2 * errors[:3], metric),
    )  # fmt: skip
    assert [(w.device, w.kind, w.before, w.after) for w in found.worse()] == [
        ("d0", "", "1-a", "2-b")
    ]
    assert next(found.worse()).text == text


def test_chance_enlarges_no_errors() -> None:
    dice, named = np.random.default_rng(3), 0
    for n in range(300):
        parts = [dice.exponential(1.0, (30, 8)) for _ in range(2)]
        named += any(seen(*measured(f"d{n}", "1-a", parts[0], "mae"),
                          *measured(f"d{n}", "2-b", parts[1], "mae")).worse())  # fmt: skip
    assert named <= 6


def test_few_labels_say_nothing() -> None:
    good, bad = {"ST": (LEAST - 1, LEAST - 1)}, {"ST": (0, LEAST - 1)}
    assert not list(seen(report("d0", "1-a", good), report("d0", "2-b", bad)).worse())


def test_of_a_window_that_several_releases_answered_each_has_its_own_labels() -> None:
    found = seen(report("d0", "2-b", {"ST": (5, 50)}, others=30)).devices["d0"]
    assert right(found["2-b"]) == (5, 50)
    assert right(found["9-z"]) == (0, 30)


def labels(release: str, change: dict[str, dict[str, int]], labelled: int) -> WindowReport:
    """What labels of a release's events add that came later."""
    right = sum(row.get(name, 0) for name, row in change.items())
    counts = ModelWindow(events=0, agreeing=0, labelled=labelled, correct=right, truth=change)
    return WindowReport(
        task="t", device="d0", window_us=0, end_us=1, revision=1, events=0, teacher_model="",
        models={release: counts},
    )  # fmt: skip


def test_a_label_that_replaces_another_moves_its_event_and_one_of_an_old_release_changes_no_order(
) -> None:  # fmt: skip
    found = seen(
        report("d0", "2-b", {"ST": (3, 5)}),
        report("d0", "3-c", {"ST": (4, 5)}),
        labels("2-b", {"ST": {"ST": -1}, "ER": {"ST": 1}}, 0),
        labels("1-a", {"ST": {"ST": 9}}, 9),
    )
    assert list(found.devices["d0"]) == ["2-b", "3-c"]
    assert (right(found.devices["d0"]["2-b"]), of_class(found.devices["d0"]["2-b"], "ER")) == (
        (2, 5), (0, 1),
    )  # fmt: skip


def test_it_keeps_a_few_releases_of_a_device() -> None:
    found = seen(*(report("d0", f"{n}-a", {"ST": (40, 50)}) for n in range(1, 50)))
    assert list(found.devices["d0"]) == ["48-a", "49-a"]


def decision(kind: Any, model: str) -> Decision:
    return Decision(task="t", task_version=1, seq=3, prev=ZERO, kind=kind, model=model, time_us=1,
                    reason="", key="0" * 16, standing=DesiredState())  # fmt: skip


def test_a_release_is_compared_with_the_one_before_those_that_were_rolled_back() -> None:
    good, bad = {"ST": (90, 100)}, {"ST": (50, 100)}
    found = seen(report("d0", "1-a", good), report("d0", "2-b", bad))
    found.decide(decision("rolled-back", "2-b"))
    found.add(report("d0", "2-b", bad))  # labels of its events come later
    assert list(found.worse()) == []
    found.add(report("d0", "3-c", bad))
    assert {(w.before, w.after) for w in found.worse()} == {("1-a", "3-c")}
    found.decide(decision("candidate", "2-b"))  # it is offered again
    found.add(report("d0", "2-b", good))
    assert {(w.before, w.after) for w in found.worse()} == {("2-b", "3-c")}


def test_a_release_is_compared_with_the_one_that_the_device_answered_with_before() -> None:
    """A person releases an earlier one again; the next one is learned from it."""
    good, bad, fair = ({"ST": (n, 100)} for n in (90, 30, 60))
    found = seen(
        report("d0", "2-b", good), report("d0", "4-d", bad, window_us=1),
        report("d0", "2-b", good, window_us=2),
        report("d0", "4-d", bad, window_us=1),  # labels of its events come later
    )  # fmt: skip
    assert list(found.worse()) == []
    found.add(report("d0", "8-f", fair, window_us=3))
    assert {(w.before, w.after, w.was[1]) for w in found.worse()} == {("2-b", "8-f", 200)}
