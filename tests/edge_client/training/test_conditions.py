"""When a device does not train; what the machine cannot tell is no reason against."""

from types import SimpleNamespace

import psutil
import pytest

from edge_client.training.trainer_client import MachineConditions


def machine(
    monkeypatch: pytest.MonkeyPatch, battery: object = None, degrees: tuple[float, ...] = ()
) -> MachineConditions:
    heat = {"cpu": [SimpleNamespace(current=value) for value in degrees]}
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: heat, raising=False)
    return MachineConditions(minimum_battery=0.3, maximum_celsius=80)


def charge(percent: float, plugged: bool) -> SimpleNamespace:
    return SimpleNamespace(percent=percent, power_plugged=plugged)


def test_a_low_battery_is_a_reason_unless_it_is_being_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    low = machine(monkeypatch, charge(29, plugged=False))
    assert low.against_training() == "on battery at 29%, below 30%"
    assert machine(monkeypatch, charge(30, plugged=False)).against_training() is None
    assert machine(monkeypatch, charge(2, plugged=True)).against_training() is None


def test_the_hottest_sensor_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine(monkeypatch, degrees=(40.0, 81.0, 20.0)).against_training()
    assert found == "81 degrees Celsius, above 80"
    assert machine(monkeypatch, degrees=(80.0, 20.0)).against_training() is None


def test_what_is_not_told_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine(monkeypatch).against_training() is None

    def unreadable() -> None:
        raise OSError("no such sensor")

    monkeypatch.setattr(psutil, "sensors_temperatures", unreadable)
    monkeypatch.delattr(psutil, "sensors_battery")
    assert MachineConditions().against_training() is None
