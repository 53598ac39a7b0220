"""Device states on `fleet`: which nodes to ask, the numbers of samples to check claims against, and
how often the teacher was right.

Only a state sent after the round's work, by the device's clock, limits what it can have trained on:
an older number may be too low. Without a newer state (no connection to Kafka, a slow clock) only
the general cap applies.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from streams.contract.documents import DeviceState
from streams.contract.errors import BrokerUnavailable, MalformedRecord
from streams.kafka.reader import Received

log = logging.getLogger(__name__)

RETRY_S = 30.0  # between two attempts to reach the broker
FRESH_S = 60.0  # older device states are outdated
POLL_S = 0.05  # timeout of a poll; a round waits for it twice
READ_S = 5.0  # at most, to read waiting messages


class FleetTopicFollower(Protocol):
    """A Reader of `fleet`, from its end."""

    def poll(self, timeout_s: float = 0.5) -> Sequence[Received]: ...

    def close(self) -> None: ...


class FleetReports:
    """Follows `fleet` during a run; `connect` may raise BrokerUnavailable, `clock` is in
    seconds."""

    def __init__(
        self, connect: Callable[[], FleetTopicFollower], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connect, self._clock = connect, clock
        self._follower: FleetTopicFollower | None = None
        self._retry_at = clock()
        self._unread: list[DeviceState] = []
        self._last: dict[str, tuple[DeviceState, float]] = {}
        self._read(READ_S)

    def since(self, time_us: int) -> Mapping[str, int]:
        """Return the largest number of samples that each device reported since `time_us`,
        microseconds."""
        most: dict[str, int] = defaultdict(int)
        self._take()
        for state in self._unread:
            if state.time_us >= time_us:
                most[state.device] = max(most[state.device], state.samples)
        self._unread.clear()
        return most

    def by_node(self) -> dict[int, DeviceState]:
        """Return the last state by Flower node, of devices that know their node, at most FRESH_S
        old."""
        self._take()
        oldest = self._clock() - FRESH_S
        return {s.node: s for s, at in self._last.values() if s.node is not None and at > oldest}

    def states(self) -> list[DeviceState]:
        """Return the last state of each device that has reported during the run."""
        self._take()
        return [state for state, _ in self._last.values()]

    def close(self) -> None:
        if self._follower is not None:
            self._follower.close()
            self._follower = None

    def _take(self) -> None:
        for state in self._read(READ_S):
            self._unread.append(state)
            self._last[state.device] = state, self._clock()

    def _read(self, within_s: float) -> list[DeviceState]:
        """Return the states since the last call; none while the broker is unavailable."""
        found: list[DeviceState] = []
        deadline = self._clock() + within_s
        try:
            if self._follower is None:
                if self._clock() < self._retry_at:
                    return []
                self._retry_at = self._clock() + RETRY_S
                self._follower = self._connect()
            while (messages := self._follower.poll(POLL_S)) and self._clock() < deadline:
                found += [state for message in messages if (state := _state(message))]
        except BrokerUnavailable as exc:
            log.warning("%s: claimed samples are not checked against device states", exc)
            self.close()
        return found


def _state(message: Received) -> DeviceState | None:
    if message.value is None:
        return None
    try:
        return DeviceState.decode(message.value)
    except MalformedRecord:
        return None  # the controller logs it
