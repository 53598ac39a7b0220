"""What the judge keeps of a fleet's windows, in columns."""

import pytest

from federation.rollout.window_history import (
    FULL,
    NOBODY,
    SEVERAL,
    TRUE,
    Part,
    WindowHistory,
    model_id,
)
from streams.contract.window_report import ClassAgreement, ModelWindow, WindowReport
from streams.fleet.agreement import SeenReports

CLASSES = ("easy", "hard", "rare")


def report(
    device: str = "d0",
    number: int = 0,
    model: str = "1-a",
    revision: int = 0,
    compared: int = 10,
    classes: dict[str, tuple[int, int]] | None = None,
    labelled: int = 0,
    truth: dict[str, dict[str, int]] | None = None,
) -> WindowReport:
    told = {name: ClassAgreement(events=n, agreeing=a) for name, (n, a) in (classes or {}).items()}
    counts = ModelWindow(
        events=10, compared=compared, agreeing=7, labelled=labelled, correct=3 if labelled else 0,
        classes=told,
        truth=truth or {},
    )  # fmt: skip
    return WindowReport(
        task="tiny", device=device, window_us=number, end_us=number + 1, revision=revision,
        events=10, teacher_model="1-t", models={model: counts},
    )  # fmt: skip


def kept(*reports: WindowReport, history: WindowHistory | None = None) -> Part:
    history = history or WindowHistory()
    once = SeenReports()
    for at, each in enumerate(reports):
        if once.is_new(each):  # as the controller's view lets them through
            history.add(each, at)
    (found,) = history.parts(100)
    return found


def cells(part: Part) -> list[tuple[float, float]]:
    return list(zip(part.cells["events"].tolist(), part.cells["right"].tolist(), strict=True))


def test_a_windows_revisions_add_up_and_the_first_one_told_when() -> None:
    first = report(classes={"easy": (6, 5), "hard": (4, 2)}, labelled=4)
    late = report(revision=1, classes={"hard": (3, 1), "rare": (7, 6)}, labelled=4)
    found = kept(first, late, late, first)
    assert len(found.windows) == 1
    assert cells(found) == [(6, 5), (7, 3), (7, 6)]
    assert found.windows["heard_us"] == 0
    assert (found.windows["labelled"], found.windows["correct"]) == (8, 6)


@pytest.mark.parametrize(
    ("reports", "model"),
    [
        ([report()], model_id("1-a")),
        ([report(model="1-a.p3")], model_id("1-a")),
        ([report(compared=0)], NOBODY),
        ([report(compared=0), report(revision=1)], model_id("1-a")),
        ([report(), report(revision=1, model="2-b")], SEVERAL),
        ([report(), report(revision=1, model="2-b"), report(revision=2)], SEVERAL),
    ],
)
def test_a_window_counts_for_the_version_that_answered_it(
    reports: list[WindowReport], model: int
) -> None:
    assert kept(*reports).windows["model"] == model


def test_reports_of_another_task_file_do_not_count() -> None:
    history = WindowHistory(classes=CLASSES)
    known, strange = report(classes={"easy": (1, 1)}), report("d1", classes={"odd": (1, 1)})
    other = report("d2").replace(metric="rmse")
    found = kept(known, strange, other, history=history)
    assert found.devices == ["d0"]
    assert history.classes == ["easy"]


def test_true_labels_are_kept_beside_what_the_teacher_says() -> None:
    truth = {"easy": {"easy": 2, "hard": 1}, "hard": {"hard": 1}}
    found = kept(report(classes={"easy": (6, 5), "hard": (4, 2)}, labelled=4, truth=truth))
    assert cells(found) == [(6, 5), (4, 2), (3, 2), (1, 1)]
    assert (found.cells["kind"] >= TRUE).tolist() == [False, False, True, True]


def later(change: dict[str, dict[str, int]], model: str = "1-a", number: int = 0) -> WindowReport:
    """Labels that came when the window had been reported."""
    right = sum(row.get(name, 0) for name, row in change.items())
    labelled = sum(sum(row.values()) for row in change.values())
    counts = ModelWindow(events=0, agreeing=0, labelled=labelled, correct=right, truth=change)
    return WindowReport(
        task="tiny", device="d0", window_us=number, end_us=number + 1, revision=7, events=0,
        teacher_model="1-t", models={model: counts},
    )  # fmt: skip


def test_labels_that_come_later_count_in_their_window_and_for_its_version() -> None:
    first = report(
        classes={"easy": (6, 5), "hard": (4, 2)}, labelled=1, truth={"easy": {"easy": 1}}
    )
    moved = later({"easy": {"easy": -1}, "hard": {"easy": 1, "hard": 2}})
    found = kept(first, moved, moved)
    assert cells(found) == [(6, 5), (4, 2), (0, 0), (3, 2)]
    assert (found.windows["labelled"], found.windows["correct"]) == (3, 4)
    assert found.windows["heard_us"] == 0
    other = later({"hard": {"hard": 2}}, model="2-b")
    assert cells(kept(first, other)) == cells(kept(first))
    assert kept(report(compared=0), other).windows["model"] == model_id("2-b")
    assert len(kept(first, later({"hard": {"hard": 2}}, number=5)).windows) == 1, "never reported"


def test_a_long_rollout_keeps_the_windows_before_it() -> None:
    """However long it takes, and as many as fit of both."""
    history = WindowHistory(10)
    for n in range(20):
        history.add(report("d0", n, compared=FULL), n)
    history.began_us = 20
    for n in range(20, 500):
        history.add(report("d0", n, compared=FULL), n)
        (found,) = history.parts(1)
        heard = found.windows["heard_us"].tolist()
        new = min(n - 19, 5)
        assert heard == [*range(20 - (10 - new), 20), *range(n + 1 - new, n + 1)]


@pytest.mark.parametrize("began_us", [None, 100])
def test_windows_of_few_events_are_joined_before_the_oldest_are_let_go(
    began_us: int | None,
) -> None:
    history = WindowHistory(40)
    history.began_us = began_us
    for n in range(200):
        model = "1-a" if n < 100 else "2-b"
        history.add(report("d0", n, model, compared=3, classes={"easy": (3, 2)}), n)
    (found,) = history.parts(1)
    assert len(found.windows) == 40
    assert found.cells["events"].max() <= FULL
    for model, first in (("1-a", 0), ("2-b", 100)):
        rows = found.windows["model"] == model_id(model)
        assert found.windows["windows"][rows].sum() == 100
        assert found.cells["events"][rows[found.at]].sum() == 300
        assert found.windows["heard_us"][rows].min() == first
    for n in range(200, 1000):
        history.add(report("d0", n, "2-b", compared=3, classes={"easy": (3, 2)}), n)
    (found,) = history.parts(1)
    assert len(found.windows) == 40
    assert (found.windows["model"] == model_id("1-a")).any() == (began_us is not None)


def test_labels_that_come_later_count_where_their_window_was_joined() -> None:
    history = WindowHistory(4)
    for n in range(10):
        history.add(report("d0", n, compared=1, classes={"easy": (1, 1)}), n)
    (found,) = history.parts(1)
    assert (len(found.windows), found.windows["windows"].sum()) == (4, 10)
    for n in range(10):
        history.add(later({"hard": {"hard": 1}}, number=n), 20)
        history.add(later({"hard": {"hard": 5}}, model="2-b", number=n), 20)
    (found,) = history.parts(1)
    assert found.cells["events"][found.cells["kind"] >= TRUE].sum() == 10
    assert (len(found.windows), found.windows["labelled"].sum()) == (4, 10)


def test_late_events_of_another_version_are_beside_joined_windows() -> None:
    history = WindowHistory(4)
    for n in range(4):
        history.add(report("d0", n, compared=1), n)
    history.add(report("d0", 4, compared=1), 4)
    history.add(report("d0", 1, "2-b", revision=1, compared=30), 5)
    (found,) = history.parts(1)
    rows = found.windows["model"] == model_id("1-a")
    assert (len(rows), rows.sum(), found.windows["windows"][rows].sum()) == (4, 3, 5)
