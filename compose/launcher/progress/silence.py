"""Devices that were started and have reported nothing since. Pure."""

from collections.abc import Sequence

from streams.fleet.view import FleetView

SILENT_S = 15.0  # a start takes three seconds
EACH_S = 1.0  # of CPU, and all start at once


def silent(view: FleetView, devices: Sequence[str], began_us: int) -> list[str]:
    """Return those of the devices that have reported nothing since `began_us`, wall clock."""
    return [
        name
        for name in devices
        if (state := view.devices.get(name)) is None or state.time_us < began_us
    ]


class SilenceWatch:
    """Finds the devices that are silent when all should have reported, once."""

    def __init__(self, devices: Sequence[str], began_us: int) -> None:
        self._devices, self._began_us = devices, began_us
        self._done = False

    @property
    def patience_s(self) -> float:
        """How long after the start all devices should have reported."""
        return SILENT_S + EACH_S * len(self._devices)

    def look(self, view: FleetView, elapsed_s: float) -> list[str]:
        """Return the silent devices the first time that `patience_s` is over, else none."""
        if self._done or elapsed_s < self.patience_s:
            return []
        self._done = True
        return silent(view, self._devices, self._began_us)
