"""What devices say of themselves on `fleet`: whom to ask, and how many samples they have, to judge
what they claim by.

Only what a device said after the round's work was sent, by its own clock, says how many it can have
trained on: an older figure may be too low. About a device that said nothing since (it is cut off
from Kafka, its clock is behind) there is no figure, and its claim is held to the cap alone.
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
FRESH_S = 60.0  # what a device said before that may hold no longer
POLL_S = 0.05  # for what is on the way; a round waits for it twice
READ_S = 5.0  # at most, for what waits on the topic


class FleetTopicFollower(Protocol):
    """A Reader of `fleet`, from its end."""

    def poll(self, timeout_s: float = 0.5) -> Sequence[Received]: ...

    def close(self) -> None: ...


class FleetReports:
    """Follows `fleet` while a run goes on; `connect` may raise BrokerUnavailable, `clock` is in
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
        """The most samples that each device said it has since `time_us`, microseconds."""
        most: dict[str, int] = defaultdict(int)
        self._take()
        for state in self._unread:
            if state.time_us >= time_us:
                most[state.device] = max(most[state.device], state.samples)
        self._unread.clear()
        return most

    def by_node(self) -> dict[int, DeviceState]:
        """The last that was heard, not longer ago than FRESH_S, from each device that knows which
        Flower node is its."""
        self._take()
        oldest = self._clock() - FRESH_S
        return {s.node: s for s, at in self._last.values() if s.node is not None and at > oldest}

    def close(self) -> None:
        if self._follower is not None:
            self._follower.close()
            self._follower = None

    def _take(self) -> None:
        for state in self._read(READ_S):
            self._unread.append(state)
            self._last[state.device] = state, self._clock()

    def _read(self, within_s: float) -> list[DeviceState]:
        """What came since the last call; nothing while the broker is away."""
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
            log.warning("%s: samples are not judged by what devices report", exc)
            self.close()
        return found


def _state(message: Received) -> DeviceState | None:
    if message.value is None:
        return None
    try:
        return DeviceState.decode(message.value)
    except MalformedRecord:
        return None  # the controller tells of it
