"""Where the loop is, and when it has closed."""

import time

from compose.reports.fleet_view import FleetView, model_number


class PhaseClock:
    """Where the loop is: first answers, rounds, canary, all on the new version; when it has closed.

    It has closed when a federated run's version has come through its rollout, and every device has
    answered as many held-out segments with it as with the version before.
    """

    def __init__(self, devices: list[str], began_us: int) -> None:
        self._devices = devices
        self._began_us = began_us
        self._at = {"inference": time.monotonic()}
        self._first: str | None = None
        self.now = "inference"
        self.closed = False

    def look(self, view: FleetView) -> None:
        states = [
            s
            for name in self._devices
            if (s := view.devices.get(name)) and s.time_us >= self._began_us
        ]
        if self._first is None and states:
            self._first = min((s.active for s in states), key=model_number)
        run = view.current_run
        if self.now == "inference" and run and run[-1].time_us >= self._began_us:
            self._enter("federated run")
        standing = view.standing
        if standing.offered is not None and self.now == "federated run":
            self._enter("canary")
        stable = standing.stable.model if standing.stable else self._first
        if len(states) < len(self._devices) or stable == self._first or standing.offered:
            return
        if self.now != "new model" and all(s.active == stable for s in states):
            self._enter("new model")
        self.closed = all(
            s.active == stable
            and stable in s.accuracy
            and s.accuracy[stable].held_out >= max(x.held_out for x in s.accuracy.values())
            for s in states
        )

    def _enter(self, phase: str) -> None:
        self.now = phase
        self._at[phase] = time.monotonic()

    def seconds(self) -> dict[str, float]:
        names = list(self._at)
        ends = [*(self._at[n] for n in names[1:]), time.monotonic()]
        return {name: end - self._at[name] for name, end in zip(names, ends, strict=True)}
