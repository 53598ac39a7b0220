"""The leader's view of the fleet, and its snapshots on `view`, from which everybody starts."""

import logging
import time
from collections.abc import Callable

from streams.contract.errors import BrokerUnavailable, UsageError
from streams.fleet.following import Putting, publish
from streams.fleet.view import FleetView, Taken
from streams.kafka.reader import Received

log = logging.getLogger(__name__)

EVERY_S = 15.0  # between two snapshots, where something has come
SHARE = 0.05  # of the time, at most, for writing them: that of a large fleet takes some
RETRY_S = 60.0


class ViewKeeper:
    """Takes in what the controller reads anyway. `clock` in seconds."""

    def __init__(self, view: FleetView, clock: Callable[[], float] = time.monotonic) -> None:
        self.view, self._clock = view, clock
        self._changed, self._due = False, 0.0

    def take(self, message: Received) -> Taken | None:
        """As `FleetView.take`."""
        self._changed = True
        return self.view.take(message)

    def publish_if_due(self, producer: Putting) -> None:
        """Publish a snapshot. Nothing waits for it: where it cannot be sent, readers start from
        the one before."""
        began = self._clock()
        if not self._changed or began < self._due:
            return
        try:
            publish(producer, self.view, time.time_ns() // 1000)
        except (BrokerUnavailable, UsageError) as exc:
            log.warning("no snapshot of the fleet: %s; trying again in %.0f s", exc, RETRY_S)
            self._due = began + RETRY_S
            return
        took = self._clock() - began
        self._changed, self._due = False, began + max(EVERY_S, took / SHARE)
