"""The events of one run, on `rounds` and in a file beside the run's checkpoints.

A run continues during a broker outage: events wait in order and are sent with the next one, or at
the end. Events that could not be sent are only in the file.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streams.contract.documents import RoundEvent, RoundKind
from streams.contract.errors import BrokerUnavailable, MalformedRecord, UsageError
from streams.contract.events.messages import Headers
from streams.contract.topics import ROUNDS, topic_name
from streams.kafka.producer import Producer

log = logging.getLogger(__name__)

RETRY_S = 5.0
SEND_TIMEOUT_S = 5.0
JOURNAL = "rounds.jsonl"
INTERRUPTED, FAILED = "the run was ", "failed: "  # how the reason of a failed run's end begins


def why_failed(folder: Path) -> str | None:
    """Return why the run of this folder failed, by the last event of its journal; None if that does
    not say so, as of a run that was killed."""
    last = _last(folder)
    if last is None or _is_permanent(last):
        return None if last is None else last.reason.removeprefix(FAILED)
    is_end = last.kind == "failed" and not last.device and last.reason.startswith(INTERRUPTED)
    return last.reason if is_end else None


def failed_for_good(folder: Path) -> bool:
    """Return whether the journal of this folder ends with an error that a run which resumes this
    one would meet again."""
    last = _last(folder)
    return last is not None and _is_permanent(last)


def _last(folder: Path) -> RoundEvent | None:
    try:
        return RoundEvent.decode((folder / JOURNAL).read_bytes().splitlines()[-1])
    except (OSError, IndexError, MalformedRecord):
        return None


def _is_permanent(last: RoundEvent) -> bool:
    return last.kind == "finished" and last.reason.startswith(FAILED)


@contextmanager
def beginning(run: str, folder: Path) -> Iterator[None]:
    """Write into the journal of this folder why a run cannot begin, where its settings or its task
    file are wrong. The topic of an unknown task is unknown: the controller reads the journal."""
    try:
        yield
    except UsageError as exc:
        journal = EventLog("", run, folder / JOURNAL, None)
        journal.publish("finished", reason=f"{FAILED}{exc}"[:300])
        raise


class EventLog:
    """Publishes the RoundEvents of one run; `connect` creates the producer and may raise. Without
    it events are only written to the file. `metric` is the name of the task's."""

    def __init__(
        self,
        task: str,
        run: str,
        path: Path,
        connect: Callable[[], Producer] | None,
        clock: Callable[[], float] = time.monotonic,
        *,
        metric: str = "accuracy",
    ) -> None:
        self._topic, self._run, self._path = topic_name(task, ROUNDS), run, path
        self._connect, self._clock, self._metric = connect, clock, metric
        self._producer: Producer | None = None
        self._pending: deque[tuple[RoundEvent, Headers]] = deque()
        self._retry_at = 0.0
        self.resumed_from = ""  # part of every event
        self.headers: Callable[[], Headers] = list  # of the message of an event
        path.parent.mkdir(parents=True, exist_ok=True)

    def publish(self, kind: RoundKind, **fields: Any) -> RoundEvent:
        """Record an event and send waiting ones, unless the broker has just been unavailable."""
        event = RoundEvent(
            run=self._run,
            kind=kind,
            time_us=time.time_ns() // 1000,
            resumed_from=self.resumed_from,
            metric=self._metric,
            **fields,
        )
        with self._path.open("ab") as file:
            file.write(event.encode() + b"\n")
        if self._connect is not None:
            self._pending.append((event, self.headers()))
        who = f" {event.device}" if event.device else ""
        log.info("round %d %s%s %s", event.round, kind, who, event.reason)
        if self._pending and self._clock() >= self._retry_at:
            self._send()
        return event

    @property
    def pending(self) -> int:
        return len(self._pending)

    def producer(self) -> Producer:
        """Return the connected producer; raise BrokerUnavailable without a broker."""
        if self._connect is None:
            raise BrokerUnavailable(f"the run has no broker: its events are in {self._path}")
        if self._producer is None:
            self._producer = self._connect()
        return self._producer

    def close(self, timeout_s: float = 30.0) -> None:
        """Send waiting events for at most `timeout_s`."""
        deadline = self._clock() + timeout_s
        if self._pending:
            self._send()
        while self._pending and self._clock() < deadline:
            time.sleep(0.5)
            self._send()
        if self._pending:
            log.warning("%d events of the run are only in %s", len(self._pending), self._path)
        if self._producer is not None:
            try:
                self._producer.close()
            except BrokerUnavailable as exc:
                log.warning("%s", exc)

    def _send(self) -> None:
        try:
            producer = self.producer()
            while self._pending:
                event, headers = self._pending[0]
                value = event.encode()
                producer.put(self._topic, self._run.encode(), value, headers, SEND_TIMEOUT_S)
                self._pending.popleft()  # after the broker's ack: a crash repeats, never loses
        except BrokerUnavailable as exc:
            log.warning("%s; %d events wait", exc, len(self._pending))
            self._retry_at = self._clock() + RETRY_S
