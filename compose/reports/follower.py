"""A thread that keeps up to date what is made of the topics, through broker outages; and a file of
a FleetView, `last-seen.view` (streams.fleet.following), which `status` and `timeline` read when no
broker answers.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from streams.contract.errors import MalformedRecord, Retryable
from streams.fleet.following import TOPICS, decode, encode, open_view
from streams.fleet.view import FleetView
from streams.kafka.reader import Received
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


class Absorbing(Protocol):
    """What takes messages in."""

    def absorb(self, message: Received) -> object: ...


A = TypeVar("A", bound=Absorbing)
T = TypeVar("T")


class Following(threading.Thread, Generic[A]):
    """Starts with the last snapshot; after an outage with a new one. `make` makes of its view what
    takes the messages in."""

    def __init__(
        self,
        settings: BrokerSettings,
        task: str,
        make: Callable[[FleetView], A],
        topics: Sequence[str] = TOPICS,
    ) -> None:
        super().__init__(name="follower", daemon=True)
        self._settings, self._task = settings, task
        self._make, self._topics = make, topics
        self._ending = threading.Event()
        self.caught_up = threading.Event()  # what was on the topics at the start is known
        self.trouble = ""  # why it cannot follow; empty while it does
        self._lock = threading.Lock()
        self._seen = make(FleetView(task))

    def read(self, look: Callable[[A], T]) -> T:
        """Return what `look` says of what was made, under the lock."""
        with self._lock:
            return look(self._seen)

    def run(self) -> None:
        while not self._ending.is_set():
            try:
                self._follow()
            except Retryable as exc:
                self.trouble = str(exc)
                self._ending.wait(0.5)

    def _follow(self) -> None:
        view, reader = open_view(self._settings, self._task, self._topics)
        with closing(reader):
            fresh = self._make(view)
            for message in reader.to_end():
                fresh.absorb(message)
            with self._lock:
                self._seen = fresh
            self.caught_up.set()
            self.trouble = ""
            while not self._ending.is_set():
                messages = reader.poll(0.2)
                with self._lock:
                    for message in messages:
                        fresh.absorb(message)

    def stop(self) -> None:
        self._ending.set()
        if self.is_alive():
            self.join(3.0)


class Follower(Following[FleetView]):
    """Follows a FleetView, which it can write to a file."""

    def __init__(self, settings: BrokerSettings, task: str) -> None:
        super().__init__(settings, task, lambda view: view)

    def keep(self, path: Path) -> None:
        """Write what has been seen; before anything is, an earlier file stays. A disk that is full
        costs the file alone: nothing depends on it, and a fleet must not end for it."""
        with self._lock:
            data = encode(self._seen, time.time_ns() // 1000) if self._seen.offsets else None
        if data is not None:
            try:
                write_atomic(path, data)
            except OSError as exc:
                log.warning("%s is not written: %s", path, exc)
