from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.evaluation.accuracy import DEVICE_CAP
from federation.evaluation.device_metrics import DeviceResult, limited, pool, read
from federation.evaluation.paired import Paired, Valued
from federation.evaluation.promotion_gate import Comparison, GateRules
from streams.contract.errors import TaskError
from streams.contract.task import Device
from tests.rig.made_up.tiny_task import task

TOTAL = {"evaluated": 10, "correct": 6, "base_correct": 5, "gained": 2, "lost": 1}
SLOW = {
    "class-0-evaluated": 6, "class-0-correct": 2, "class-0-base_correct": 3, "class-0-gained": 0,
    "class-0-lost": 1, "class-0-base_false": 2, "class-0-false": 0,
}  # fmt: skip
FAST = {
    "class-2-evaluated": 4, "class-2-correct": 4, "class-2-base_correct": 2, "class-2-gained": 2,
    "class-2-lost": 0, "class-2-base_false": 3, "class-2-false": 4,
}  # fmt: skip
SOUND = {name: float(value) for name, value in {**TOTAL, **SLOW, **FAST}.items()}


def test_a_devices_figures_are_read_as_they_are() -> None:
    assert read(task, SOUND) == DeviceResult(
        Paired(10, 5, 2, 1),
        {"class slow": Paired(6, 3, 0, 1, 2, 0), "class fast": Paired(4, 2, 2, 0, 3, 4)},
    )
    plain = {name: value for name, value in SOUND.items() if "class" not in name}
    assert read(task, plain) == DeviceResult(Paired(10, 5, 2, 1))


@pytest.mark.parametrize("name", [*TOTAL, *SLOW, *FAST])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -1.0, 2.5, 1e12, 9.0])
def test_one_figure_that_is_missing_or_impossible_makes_all_count_as_none(
    name: str, value: float | None
) -> None:
    changed = {k: v for k, v in SOUND.items() if k != name}
    assert read(task, changed if value is None else {**changed, name: value}) is None


def test_a_device_that_has_nothing_to_compare_has_no_figures() -> None:
    assert read(task, {}) is None
    assert read(task, {"evaluated": 10.0, "correct": 6.0}) is None
    assert read(task, dict.fromkeys(TOTAL, 0.0)) is None


numbers = st.one_of(st.integers(-2, 12).map(float), st.floats())


@given(st.dictionaries(st.sampled_from([*TOTAL, *SLOW, *FAST, "class-9-lost", "x"]), numbers))
def test_whatever_a_device_says_is_possible_or_nothing(said: dict[str, float]) -> None:
    found = read(task, said)
    if found is not None:
        for rows in (found.rows, *found.cohorts.values()):
            assert 0 <= rows.lost <= rows.base <= rows.n
            assert 0 <= rows.gained <= rows.n - rows.base


@given(st.integers(1, 400), st.integers(0, 7))
def test_no_device_outweighs_the_others(times: int, shift: int) -> None:
    """Scaled down its numbers stay possible, also those of classes."""
    found = read(task, {name: (times << shift) * value for name, value in SOUND.items()})
    if (times << shift) * 10 > 1_000_000:
        assert found is None
        return
    assert found is not None
    assert found.rows.n == min(DEVICE_CAP, 10 * (times << shift))
    for rows in (found.rows, *found.cohorts.values()):
        assert 0 <= rows.lost <= rows.base <= rows.n
        assert rows.gained <= rows.n - rows.base
    assert found.rows.gain == pytest.approx(0.1, abs=0.001)


def of_rows(*counts: int) -> dict[str, DeviceResult]:
    return {f"d{at}": DeviceResult(Paired(n, n // 2, n // 10)) for at, n in enumerate(counts)}


def test_a_device_counts_with_twice_the_median_of_rows_and_with_20_always() -> None:
    def counted(*rows: int) -> list[int]:
        return [each.rows.n for each in limited(of_rows(*rows)).values()]

    assert counted(*[30] * 7, *[2048] * 3) == [30] * 7 + [60] * 3
    assert counted(1, 2, 3, 300) == [1, 2, 3, GateRules.minimum]


def test_devices_of_a_group_are_a_cohort_and_those_without_are_none() -> None:
    north = [Device("a", "fleet", "north"), Device("b", "fleet", "north"), Device("c", "fleet")]
    grouped = replace(task, devices=lambda: north)
    one, two = (
        Comparison(Paired(10, 5, 2, 1), {"class slow": Paired(10, 5, 2, 1)}),
        Paired(7, 3, 0, 1),
    )
    found = pool(grouped, {"a": one, "b": Comparison(two), "c": one, "stranger": one})
    assert found.rows == Paired(37, 18, 6, 4, down=1, squares=4)
    assert found.cohorts == {
        "class slow": Paired(30, 15, 6, 3, squares=3),
        "group north": Paired(17, 8, 2, 2, down=1, squares=2),
    }


@pytest.mark.parametrize("group", ["north pole", "-x", "a/b", "x" * 64])
def test_a_group_is_named_as_devices_are(group: str) -> None:
    with pytest.raises(TaskError, match=r"device 'a': group .* must be"):
        Device("a", "fleet", group)


SPEED = replace(task, classes=(), targets=("speed",), metric="rmse")
NUMBERS = {name: float(value) for name, value in TOTAL.items()}


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -1e300])
@pytest.mark.parametrize("name", ["metric", "metric_base"])
def test_a_device_without_a_sound_metric_counts_as_none(name: str, value: float | None) -> None:
    sound = {**NUMBERS, "metric": 2.0, "metric_base": 3.0}
    assert read(SPEED, sound) == DeviceResult(Paired(10, 5, 2, 1), {}, (3.0, 2.0))
    changed = {k: v for k, v in sound.items() if k != name}
    assert read(SPEED, changed if value is None else {**changed, name: value}) is None


def test_devices_are_the_units_of_another_metric_than_accuracy() -> None:
    said = {f"d{n}": read(SPEED, {**NUMBERS, "metric": 2.0, "metric_base": 2.5}) for n in range(6)}
    found = pool(SPEED, {name: each for name, each in said.items() if each})
    assert isinstance(found.rows, Valued)
    assert (found.rows.n, found.rows.units, found.rows.after) == (60, 6, 2.0)
    assert found.rows.gain == pytest.approx(0.2)
    assert found.rows.chance_of_gain == 1 / 64
    assert pool(SPEED, {}) == Comparison(Valued())
    assert pool(task, {}) == Comparison(Paired())


def test_no_device_moves_the_gain_by_more_than_its_share_of_rows() -> None:
    said = {"metric": 1e30, "metric_base": 1.0}
    worse = [read(SPEED, {**NUMBERS, "metric": 2.0, "metric_base": 2.0}) for _ in range(9)]
    devices = [each for each in (*worse, read(SPEED, {**NUMBERS, **said})) if each is not None]
    rows = pool(SPEED, {f"d{n}": each for n, each in enumerate(devices)}).rows
    assert rows.gain == pytest.approx(-0.1)
    assert rows.after <= 0.9 * 2.0 + 0.1 * 20.0 + 1e-9
