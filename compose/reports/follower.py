"""A thread that keeps a FleetView up to date from the topics, through broker outages."""

import threading
from collections.abc import Callable

from compose.reports.fleet_view import FleetView
from streams.contract.errors import Retryable
from streams.kafka.reader import Reader
from streams.kafka.settings import BrokerSettings


class Follower(threading.Thread):
    """Reads the topics from their beginning; after an outage into a new FleetView."""

    def __init__(self, settings: BrokerSettings, task: str) -> None:
        super().__init__(name="follower", daemon=True)
        self._settings = settings
        self._task = task
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._view = FleetView(task)

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
        reader = Reader(self._settings, FleetView.topics(self._task))
        fresh = FleetView(self._task)
        try:
            for message in reader.read_to_end():
                fresh.absorb(message)
            with self._lock:
                self._view = fresh
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
