"""What is made of the topics, kept up to date through broker outages by a thread; a file of a
FleetView, `last-seen.view` (streams.fleet.following), which `status` and `timeline` read when no
broker answers; and how far the scoring workers are behind the devices, from Kafka's offsets.

The lag counts messages of `events`, not events: those from the committed offset of the workers'
group to the partition's end. A worker commits a message once all its events are stored, so messages
of open windows count too: the lag of a running fleet is never 0. Kafka deletes what is older than
`retention.ms`, read or not.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from streams.contract.errors import MalformedRecord, Retryable
from streams.contract.task import Task
from streams.contract.topics import EVENTS, topic_name, worker_group
from streams.fleet.agreement import Evidence
from streams.fleet.following import ALL_TOPICS, decode, encode, last_snapshot, open_view
from streams.fleet.view import FleetView
from streams.kafka.admin import GroupPosition, group_state, made_again
from streams.kafka.reader import Reader, Received
from streams.kafka.settings import BrokerSettings
from streams.runtime.files import write_atomic

EVIDENCE_S = 15.0  # as often as the controller publishes it
ANSWER_S = 3.0

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
    takes the messages in. What a canary's windows show, which the controller evaluates, is taken
    from newer snapshots while a version is offered."""

    def __init__(
        self,
        settings: BrokerSettings,
        task: str,
        make: Callable[[FleetView], A],
    ) -> None:
        super().__init__(name="follower", daemon=True)
        self._settings, self._task = settings, task
        self._make = make
        self._ending = threading.Event()
        self.caught_up = threading.Event()  # what was on the topics at the start is known
        self.trouble = ""  # why it cannot follow; empty while it does
        self._lock = threading.Lock()
        self._seen = make(FleetView(task))
        self._evidence_at = 0.0

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
        view, reader = open_view(self._settings, self._task, ALL_TOPICS)
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
                evidence = self._read_evidence(view)
                with self._lock:
                    for message in messages:
                        fresh.absorb(message)
                    view.evidence = evidence

    def _read_evidence(self, view: FleetView) -> Evidence:
        now = time.monotonic()
        if view.standing.offered is None or now - self._evidence_at < EVIDENCE_S:
            return view.evidence
        self._evidence_at = now
        try:
            found = last_snapshot(self._settings, self._task, ANSWER_S)
        except Retryable:  # what is followed says so
            found = None
        return view.evidence if found is None else found.evidence

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


# --- lag ------------------------------------------------------------------------------------------

WARN = 0.5  # of the retention: a message that has waited longer is reported


@dataclass(frozen=True)
class PartitionLag:
    """One partition of `events`. committed: None if no worker has committed; deleted: messages that
    were deleted before a worker read them; waits_s: age of the first message that waits."""

    partition: int
    end: int
    committed: int | None
    messages: int
    deleted: int = 0
    waits_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Lag:
    """All partitions; keeps_s: after how long `events` deletes a message, None for never; workers:
    that read, None where the broker does not tell; open_s: how long they keep a window open at
    most."""

    partitions: Sequence[PartitionLag] = ()
    keeps_s: float | None = None
    workers: int | None = None
    open_s: float = 0.0

    @property
    def messages(self) -> int:
        return sum(lag.messages for lag in self.partitions)

    @property
    def waits_s(self) -> float:
        """How long the oldest message waits, as far as that is known."""
        return max((each.waits_s or 0.0 for each in self.partitions), default=0.0)


def read_lag(settings: BrokerSettings, task: Task, timeout_s: float = 3.0) -> Lag:
    """Return the lag of each partition; raise BrokerUnavailable without a broker."""
    events = topic_name(task.id, EVENTS)
    group = group_state(settings, worker_group(task.id), events, timeout_s)
    found = [lag_of(position) for position in group.positions]
    waits = _waits(settings, events, found, timeout_s) if any(x.messages for x in found) else {}
    lags = [replace(each, waits_s=waits.get(each.partition)) for each in found]
    return Lag(lags, group.keeps_s, group.members, task.open_s)


def lag_of(position: GroupPosition) -> PartitionLag:
    """Return a partition's lag. Without a committed offset a worker counts from 0: messages before
    the partition's first offset were deleted unread. Deleted messages are not behind."""
    done = position.committed or 0
    done = done if done <= position.end else 0
    deleted = max(0, position.begin - done)
    behind = max(0, position.end - max(position.begin, done))
    return PartitionLag(position.partition, position.end, position.committed, behind, deleted)


def _waits(
    settings: BrokerSettings, topic: str, lags: Sequence[PartitionLag], timeout_s: float
) -> dict[int, float]:
    """Return by partition how long its first unread message waits, by the message's timestamp;
    without those that do not come in time."""
    waiting = {lag.partition for lag in lags if lag.messages}
    found: dict[int, float] = {}
    deadline = time.monotonic() + timeout_s
    with closing(Reader(settings, [topic], from_beginning=False)) as reader:
        for lag in lags:
            if lag.messages:
                reader.seek(topic, lag.partition, lag.end - lag.messages)
        while waiting - set(found) and time.monotonic() < deadline:
            for message in reader.poll(0.2):
                age_s = max(0.0, time.time() - message.time_ms / 1000)
                found.setdefault(message.partition, age_s if message.time_ms else 0.0)
    return found


def lag_line(lag: Lag) -> str:
    """Return the lag in total and by partition, for a person."""
    each = ", ".join(f"{lag.partition}: {lag.messages}" for lag in lag.partitions)
    line = f"workers are {lag.messages} messages behind (by partition {each})"
    idle = all(each.committed is None for each in lag.partitions)
    return f"{line}; no worker has committed yet" if idle else line


def retention_lines(lag: Lag) -> Iterator[str]:
    """Yield what retention has deleted unread, and what it will delete soon."""
    for each in lag.partitions:
        if (each.committed or 0) > each.end:
            again = GroupPosition(each.partition, 0, each.end, each.committed)
            yield f"{made_again(EVENTS, again)}: workers that start again read it from its start"
        if each.deleted:
            yield (
                f"partition {each.partition}: {each.deleted} messages were deleted before a worker "
                "read them: a worker that starts, or reads the partition's next message, declares "
                "the events that their producers numbered (epoch, seq) as lost-by-retention; "
                "others cannot be counted. This stays until that message comes"
            )
    worst = max(lag.partitions, key=lambda each: each.waits_s or 0.0, default=None)
    if worst is None or worst.waits_s is None or not lag.keeps_s:
        return
    if worst.waits_s > WARN * lag.keeps_s:
        left_h = (lag.keeps_s - worst.waits_s) / 3600
        yield (
            f"partition {worst.partition}: messages wait for {worst.waits_s / 3600:.1f} h, and the "
            f"topic keeps them for {lag.keeps_s / 3600:.1f} h: start workers, or raise "
            f"retention.ms, or the first ones are lost "
            + (f"in {left_h:.1f} h" if left_h > 0 else "at any moment")
        )
