"""A thread that keeps a FleetView up to date from the topics, through broker outages; and a file of
it, `last-seen.view` (streams.fleet.snapshot), which `status` and `timeline` read when no broker
answers.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from streams.contract.errors import MalformedRecord, Retryable
from streams.fleet.following import catch_up, open_view
from streams.fleet.snapshot import decode, encode
from streams.fleet.view import FleetView
from streams.kafka.settings import BrokerSettings
from streams.runtime.disk import write_atomic

log = logging.getLogger(__name__)


def last_seen(path: Path) -> tuple[FleetView, int] | None:
    """Return the view, and when it was written, wall-clock microseconds; None where there is no
    such file, or it cannot be read."""
    try:
        return decode(path.read_bytes())
    except (OSError, MalformedRecord):
        return None


class Follower(threading.Thread):
    """Starts with the last snapshot; after an outage with a new FleetView."""

    def __init__(self, settings: BrokerSettings, task: str) -> None:
        super().__init__(name="follower", daemon=True)
        self._settings = settings
        self._task = task
        self._ending = threading.Event()
        self.caught_up = threading.Event()  # what was on the topics at the start is known
        self._lock = threading.Lock()
        self._view = FleetView(task)

    def keep(self, path: Path) -> None:
        """Write what has been seen; before anything is, an earlier file stays. A disk that is full
        costs the file alone: nothing depends on it, and a fleet must not end for it."""
        with self._lock:
            data = encode(self._view, time.time_ns() // 1000) if self._view.offsets else None
        if data is not None:
            try:
                write_atomic(path, data)
            except OSError as exc:
                log.warning("%s is not written: %s", path, exc)

    def read(self, look: Callable[[FleetView], object]) -> None:
        """Call `look` with the view under the lock."""
        with self._lock:
            look(self._view)

    def run(self) -> None:
        while not self._ending.is_set():
            try:
                self._follow()
            except Retryable:
                self._ending.wait(0.5)

    def _follow(self) -> None:
        fresh, reader = open_view(self._settings, self._task)
        try:
            catch_up(fresh, reader)
            with self._lock:
                self._view = fresh
            self.caught_up.set()
            while not self._ending.is_set():
                messages = reader.poll(0.2)
                with self._lock:
                    for message in messages:
                        fresh.absorb(message)
        finally:
            reader.close()

    def stop(self) -> None:
        self._ending.set()
        self.join(3.0)
