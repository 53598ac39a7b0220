"""What the fleet knows of the teacher, from the devices' reports."""

import pytest

from federation.rounds.fleet_reports import CAP, SHRINK, teacher_shares
from streams.contract.documents import DeviceState
from streams.contract.errors import MalformedRecord
from tests.rig.made_up.documents import device_state
from tests.rig.made_up.tiny_task import task


def told(record: dict[int, tuple[int, int]], of: str = task.name) -> DeviceState:
    return device_state(task=of, teacher_record=record)


def test_all_devices_count_together_by_class() -> None:
    found = teacher_shares(task, [told({0: (10, 10), 1: (4, 0)}), told({0: (10, 8), 1: (6, 2)})])
    overall = 20 / 30
    assert found == pytest.approx(
        [(18 + SHRINK * overall) / (20 + SHRINK), (2 + SHRINK * overall) / (10 + SHRINK), overall],
        abs=1e-4,
    )


def test_nothing_is_known_without_events() -> None:
    assert teacher_shares(task, []) == []
    assert teacher_shares(task, [told({})]) == []


@pytest.mark.parametrize("record", [{0: (3, 4)}, {7: (9, 9)}, {0: (0, 0)}])
def test_impossible_counts_are_passed_over(record: dict[int, tuple[int, int]]) -> None:
    assert teacher_shares(task, [told(record)]) == []


def test_a_class_below_zero_is_no_state_of_a_device() -> None:
    with pytest.raises(MalformedRecord, match="teacher_record"):
        told({-1: (5, 5)})


def test_another_tasks_device_has_no_say() -> None:
    assert teacher_shares(task, [told({0: (9, 9)}, "other")]) == []


def test_no_device_counts_with_more_than_its_cap() -> None:
    liar = told({1: (1_000_000, 1_000_000)})
    honest = [told({1: (CAP, 0)}) for _ in range(9)]
    assert teacher_shares(task, [liar, *honest])[1] < 0.15
