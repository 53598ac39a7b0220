"""Conditions for training: the device must be on power or charged enough, and not too hot.

An unreadable sensor does not prevent training: most machines have no battery, many report no
temperature.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class MachineConditions:
    """Conditions from psutil's battery and temperature sensors.

    minimum_battery: the charge, 0 to 1, that a device on battery needs; maximum_celsius: of the
    hottest sensor.
    """

    minimum_battery: float = 0.3
    maximum_celsius: float = 80.0

    def against_training(self) -> str | None:
        """Return why the device must not train now, for a person; None if it may."""
        return self._battery() or self._heat()

    def _battery(self) -> str | None:
        battery = _read("sensors_battery")
        if battery is None or battery.power_plugged:
            return None
        share = battery.percent / 100
        if share >= self.minimum_battery:
            return None
        return f"on battery at {share:.0%}, below {self.minimum_battery:.0%}"

    def _heat(self) -> str | None:
        sensors = _read("sensors_temperatures") or {}
        hottest = max((s.current for found in sensors.values() for s in found), default=None)
        if hottest is None or hottest <= self.maximum_celsius:
            return None
        return f"{hottest:.0f} degrees Celsius, above {self.maximum_celsius:.0f}"


def _read(name: str):  # type: ignore[no-untyped-def]
    """Return psutil's reading; None if the system has none."""
    import psutil  # here: the first answer does not wait for it

    try:
        return getattr(psutil, name)()
    except (AttributeError, OSError, RuntimeError):
        return None
