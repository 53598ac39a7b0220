"""Devices that were started and have said nothing since. Pure."""

from collections.abc import Sequence

from streams.fleet.view import FleetView

SILENT_S = 15.0  # a start takes three seconds, and more where many start at once


def silent(view: FleetView, devices: Sequence[str], began_us: int) -> list[str]:
    """Return those of the devices that have reported nothing since `began_us`, wall clock."""
    return [
        name
        for name in devices
        if (state := view.devices.get(name)) is None or state.time_us < began_us
    ]


class SilenceWatch:
    """Tells once of each device that has said nothing SILENT_S after the start."""

    def __init__(self, devices: Sequence[str], began_us: int) -> None:
        self._devices, self._began_us = devices, began_us
        self._told: set[str] = set()

    def look(self, view: FleetView, elapsed_s: float) -> list[str]:
        """Return the devices that are to be told of now."""
        if elapsed_s < SILENT_S or len(self._told) == len(self._devices):
            return []
        found = [n for n in silent(view, self._devices, self._began_us) if n not in self._told]
        self._told.update(found)
        return found
