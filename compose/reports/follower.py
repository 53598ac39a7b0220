"""A thread that keeps a FleetView up to date from the topics, through broker outages; and a file of
what it has seen, which `status` and `timeline` read when no broker answers.

`last-seen.jsonl`: a line {"time_us"}, then a line {topic, key, value, time_ms} for each message: a
device's last one, all decisions, the last LAST of `rounds` and of `windows`.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from compose.reports.fleet_view import FleetView
from streams.contract.errors import Retryable
from streams.contract.topics import FLEET, RELEASES
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings
from streams.runtime.disk import write_atomic

log = logging.getLogger(__name__)

LAST = 2000


class LastSeen:
    """The messages that are worth keeping, and the file's text."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[str, bytes | None], Received] = {}
        self._newest: dict[str, deque[Received]] = {}

    def take(self, message: Received) -> None:
        topic = message.topic.rpartition(".")[2]
        if topic in (FLEET, RELEASES):
            self._by_key[topic, message.key] = message
        else:
            self._newest.setdefault(topic, deque(maxlen=LAST)).append(message)

    def text(self) -> str | None:
        """Return the file's text; None before there is a message."""
        messages = [*self._by_key.values(), *(m for some in self._newest.values() for m in some)]
        if not messages:
            return None
        lines = [json.dumps({"time_us": time.time_ns() // 1000})]
        return "\n".join([*lines, *(json.dumps(_written(message)) for message in messages)])

    @staticmethod
    def read(path: Path) -> tuple[list[Received], int] | None:
        """The messages, and when they were written, in wall-clock microseconds; None where there is
        no such file, or it cannot be read."""
        try:
            first, *rest = [json.loads(line) for line in path.read_text().splitlines()]
            return [_read(each) for each in rest], int(first["time_us"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _written(message: Received) -> dict[str, str | int | None]:
    key, value = (None if x is None else x.decode("latin-1") for x in (message.key, message.value))
    return {"topic": message.topic, "key": key, "value": value, "time_ms": message.time_ms}


def _read(line: dict[str, str | int | None]) -> Received:
    key, value = (
        None if line[name] is None else str(line[name]).encode("latin-1")
        for name in ("key", "value")
    )
    return Received(str(line["topic"]), 0, 0, key, value, [], int(line["time_ms"] or 0))


class Follower(threading.Thread):
    """Reads the topics from their beginning; after an outage into a new FleetView."""

    def __init__(self, settings: BrokerSettings, task: str) -> None:
        super().__init__(name="follower", daemon=True)
        self._settings = settings
        self._task = task
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._view = FleetView(task)
        self._seen = LastSeen()

    def keep(self, path: Path) -> None:
        """Write what has been seen; before anything is, an earlier file stays. A disk that is full
        costs the file alone: nothing depends on it, and a fleet must not end for it."""
        with self._lock:
            text = self._seen.text()
        if text is not None:
            try:
                write_atomic(path, text.encode())
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
        reader = Reader(self._settings, FleetView.topics(self._task))
        fresh = FleetView(self._task)
        try:
            seen = LastSeen()
            for message in reader.read_to_end():
                fresh.absorb(message)
                seen.take(message)
            with self._lock:
                self._view, self._seen = fresh, seen
            while not self._ending.is_set():
                messages = reader.poll(0.2)
                with self._lock:
                    for message in messages:
                        fresh.absorb(message)
                        seen.take(message)
        finally:
            reader.close()

    def stop(self) -> None:
        self._ending.set()
        self.join(3.0)
