"""How far a candidate goes from the served weights."""

from dataclasses import replace

import pytest

from federation.evaluation import evidence
from federation.evaluation.device_metrics import DeviceResult
from federation.evaluation.paired import Paired
from streams.contract.task import Task

UNKNOWN = Paired()
BETTER = Paired(200, 100, gained=40, lost=5)


def told(*nets: int, rows: int = 100) -> dict[str, DeviceResult]:
    """Devices that gain so many rows of `rows`, or lose them."""
    return {
        f"d{at}": DeviceResult(Paired(rows, 50, max(0, net), max(0, -net)))
        for at, net in enumerate(nets)
    }


def test_a_device_may_lose_by_all_of_it_what_it_loses_by_a_part(tiny: Task) -> None:
    found = evidence.choose_step(tiny, told(*[1] * 7, -4), told(*[9] * 7, -4), UNKNOWN)
    assert found.harm == (0.005, 0.005)
    assert found.whole


def test_held_out_devices_can_show_it_for_a_small_fleet_that_loses_nothing(tiny: Task) -> None:
    assert evidence.choose_step(tiny, told(5, 5), told(5, 6), BETTER).whole
    assert not evidence.choose_step(tiny, told(5, 5), told(5, -1), BETTER).whole
    assert not evidence.choose_step(tiny, told(5, 5), told(5, 4), BETTER).whole
    assert not evidence.choose_step(tiny, {}, {}, UNKNOWN).whole


def test_an_error_is_told_by_what_it_shrinks(tiny: Task) -> None:
    numbers = replace(tiny, classes=(), targets=("level",), metric="rmse")
    part = {f"d{at}": DeviceResult(Paired(50), value=(1.0, 0.8)) for at in range(6)}
    whole = {name: replace(each, value=(1.0, 0.5)) for name, each in part.items()}
    found = evidence.choose_step(numbers, part, whole, UNKNOWN)
    assert found.whole
    assert found.gain == pytest.approx(0.3)
    worse = whole | {"d0": replace(part["d0"], value=(1.0, 1.1))}
    assert not evidence.choose_step(numbers, part, worse, UNKNOWN).whole


def test_devices_that_know_no_part_are_judged_by_all_of_it(tiny: Task) -> None:
    assert evidence.choose_step(tiny, {}, told(1, 1), UNKNOWN).whole
