"""The leader's view of the fleet, and its snapshots on `view`, from which everybody starts; and the
past with which a canary is compared, after a controller's start.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing

from streams.contract.errors import BrokerUnavailable, MalformedRecord, UsageError
from streams.contract.topics import WINDOWS, topic_name
from streams.contract.window_report import WindowReport
from streams.fleet.following import publish
from streams.fleet.view import FleetView, Taken
from streams.kafka.producer import Producer
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings

log = logging.getLogger(__name__)

LOOK_BACK_S = 7200.0  # of windows
MOST = 10_000  # reports, over all partitions

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

    def publish_if_due(self, producer: Producer) -> None:
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


def past_windows(
    broker: BrokerSettings, task: str, since_ms: int
) -> Iterator[tuple[WindowReport, int]]:
    """Yield the reports on `windows` from LOOK_BACK_S before `since_ms` on, the newest MOST, and
    when each was sent, microseconds. One that cannot be read is left out: the view counts it.
    """
    with closing(Reader(broker, [topic_name(task, WINDOWS)], from_beginning=False)) as reader:
        reader.seek_back(since_ms - int(LOOK_BACK_S * 1000))
        bounds = reader.bounds()
        for (name, partition), (_, end) in bounds.items():
            start = max(reader.position(name, partition), end - MOST // len(bounds))
            reader.seek(name, partition, start)
        for message in reader.to_end():
            try:
                yield WindowReport.decode(message.value), message.time_ms * 1000
            except MalformedRecord:
                continue
