"""What the judge keeps of a fleet's windows, in columns."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.rollout.compared import Comparison
from federation.rollout.window_history import (
    NOBODY,
    REVISIONS,
    SEVERAL,
    Part,
    WindowHistory,
    model_id,
)
from streams.contract.window_report import ClassAgreement, ModelWindow, WindowReport

CLASSES = ("easy", "hard", "rare")


def report(
    device: str = "d0",
    number: int = 0,
    model: str = "1-a",
    revision: int = 0,
    compared: int = 10,
    classes: dict[str, tuple[int, int]] | None = None,
) -> WindowReport:
    counts = ModelWindow(events=10, compared=compared, agreeing=7, labelled=4, correct=3)
    return WindowReport(
        task="tiny", device=device, window_us=number, end_us=number + 1, revision=revision,
        events=10, teacher_model="1-t", models={model: counts},
        classes={
            name: ClassAgreement(events=n, agreeing=a) for name, (n, a) in (classes or {}).items()
        },
    )  # fmt: skip


def kept(*reports: WindowReport, history: WindowHistory | None = None) -> Part:
    history = history or WindowHistory()
    for at, each in enumerate(reports):
        history.add(each, at)
    (found,) = history.parts(100)
    return found


def cells(part: Part) -> list[tuple[float, float]]:
    return list(zip(part.cells["events"].tolist(), part.cells["right"].tolist(), strict=True))


def test_a_windows_revisions_add_up_and_the_first_one_told_when() -> None:
    first = report(classes={"easy": (6, 5), "hard": (4, 2)})
    late = report(revision=1, classes={"hard": (3, 1), "rare": (7, 6)})
    found = kept(first, late, late, first)
    assert len(found.windows) == 1
    assert cells(found) == [(6, 5), (7, 3), (7, 6)]
    assert found.windows["heard_us"] == 0
    assert (found.windows["labelled"], found.windows["correct"]) == (8, 6)


def test_cells_stay_with_their_windows() -> None:
    """Windows that come out of order, a window between two others, one that is let go."""
    history = WindowHistory(kept=3)
    order = (5, 1, 3, 4, 2, 0)
    reports = [report(number=n, classes={"easy": (n + 1, n)}) for n in order]
    found = kept(*reports, history=history)
    assert cells(found) == [(4, 3), (5, 4), (6, 5)]
    assert found.windows["heard_us"].tolist() == [2, 3, 0]
    assert found.at.tolist() == [0, 1, 2]


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
    other = report("d2").model_copy(update={"metric": "rmse"})
    found = kept(known, strange, other, report("d3", revision=REVISIONS), history=history)
    assert found.devices == ["d0"]
    assert history.classes == ["easy"]


rows = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.integers(0, 30),
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=3),
    ),
    max_size=60,
    unique_by=lambda row: row[:2],
)


@given(rows, st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_parts_of_the_fleet_sum_up_as_all_of_it(
    drawn: list[tuple[int, int, list[tuple[int, int]]]], size: int
) -> None:
    history, wanted = WindowHistory(), defaultdict(lambda: np.zeros(2))
    for device, number, counts in drawn:
        told = {name: (n + a, a) for name, (n, a) in zip(CLASSES, counts, strict=True)}
        history.add(report(f"d{device}", number, classes=told), number)
        if not any(n for n, _ in told.values()):
            wanted[f"d{device}", ""] += 10, 7
        for name, sums in told.items():
            wanted[f"d{device}", name] += sums
    comparison = Comparison(history, "2-b", "1-a", 10**9, lambda _: False)
    found = defaultdict(lambda: np.zeros(2))
    for part in history.parts(size):
        place = part.device[part.at]
        for i, cell in zip(place, part.cells, strict=True):
            name = part.devices[i], history.classes[cell["kind"]]
            found[name] += cell["events"], cell["right"]
    summed = sum(each.past.a.sum() for each in comparison.parts())
    for key, sums in found.items():
        assert sums.tolist() == wanted[key].tolist()
    assert summed == sum(sums[1] for sums in wanted.values())
