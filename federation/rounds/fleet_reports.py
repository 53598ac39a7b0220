"""Device states on `fleet`: which devices to invite, whose device has fallen silent or is at work,
the numbers of samples to check claims against, and how often the teacher was right.

Silence is judged by when states come here, never by a device's clock: a device is silent when
others have been heard for longer than it may be quiet. So a broker that is down, or a run that does
not read for a while, makes no device silent.

Only a state sent after the round's work, by the device's clock, limits what it can have trained on:
an older number may be too low. Without a newer state (no connection to Kafka, a slow clock) only
the general cap applies.

How often the teacher was right by class a device knows from its own labelled events
(`DeviceState.teacher_record`), of which there are few of each class. What all devices say together
goes out with a round's work (`Work.teacher`), and each device decides by both how far to trust the
teacher (edge_client/samples/table.py). Reports are untrusted: impossible counts are passed over,
and no device counts with more than CAP events of a class.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from streams.contract.documents import DeviceState
from streams.contract.errors import BrokerUnavailable, MalformedRecord
from streams.contract.task import Task
from streams.kafka.reader import Reader, Received

log = logging.getLogger(__name__)

CAP = 50
SHRINK = 2.0  # events of the share over all classes beside those of one class
RETRY_S = 30.0  # between two attempts to reach the broker
FRESH_S = 60.0  # older device states are outdated
POLL_S = 0.01  # timeout of a poll; a round waits for it six times
READ_S = 5.0  # at most, to read waiting messages
LOOK_S = 0.5  # the same where replies are waited for meanwhile
SPARE_S = 2.0  # a device may be quiet for so long after it has missed its heartbeats
GAP_S = 5.0  # if nobody is heard for longer, silence counts from then on


class FleetReports:
    """Follows `fleet` during a run; `connect` returns a reader of it from its end, and may raise
    BrokerUnavailable; `clock` is in seconds. away: why the broker is unavailable, "" while it is
    not."""

    def __init__(
        self, connect: Callable[[], Reader], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connect, self._clock = connect, clock
        self._follower: Reader | None = None
        self.away = ""
        self._retry_at = clock()
        self._unread: list[DeviceState] = []
        self._last: dict[str, tuple[DeviceState, float]] = {}
        self._heard_at = self._heard_since = clock()  # of anybody; without a gap
        self._fallen: set[str] = set()  # devices that are silent, until they are heard again
        self._take()

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

    def silent(self) -> dict[int, float]:
        """Return the Flower nodes whose device has fallen silent, and for how many seconds others
        have been heard since.

        A device says itself how soon the next state comes (`heartbeat_s`). A device that never
        named its node is not judged. Of several that name the same node one is enough to be heard.
        """
        if self._follower is not None:  # connecting takes seconds, and replies wait meanwhile
            self._take(LOOK_S)
        if self._follower is None:
            return {}
        quiet: dict[int, float] = {}
        loud: set[int] = set()
        for device, (state, at) in self._last.items():
            if self._heard_at - max(at, self._heard_since) > state.missed_after_s + SPARE_S:
                self._fallen.add(device)
            if state.node is None:
                continue
            if device in self._fallen:
                quiet[state.node] = self._heard_at - at
            else:
                loud.add(state.node)
        return {node: silent_s for node, silent_s in quiet.items() if node not in loud}

    def at_work(self) -> set[int]:
        """Return the Flower nodes whose device reports that it works for a round, as last read."""
        states = [state for state, _ in self._last.values()]
        return {s.node for s in states if s.working and s.node is not None}

    def states(self, fresh_s: float = float("inf")) -> list[DeviceState]:
        """Return the last state of each device that has reported during the run, and at most
        `fresh_s` ago."""
        self._take()
        oldest = self._clock() - fresh_s
        return [state for state, at in self._last.values() if at >= oldest]

    def close(self) -> None:
        if self._follower is not None:
            self._follower.close()
            self._follower = None

    def _take(self, within_s: float = READ_S) -> None:
        if not (found := self._read(within_s)):
            return
        now = self._clock()
        if now - self._heard_at > GAP_S:
            self._heard_since = now
        self._heard_at = now
        self._unread += found
        self._last |= {state.device: (state, now) for state in found}
        self._fallen.difference_update(state.device for state in found)

    def _read(self, within_s: float) -> list[DeviceState]:
        """Return the states since the last call; none while the broker is unavailable."""
        found: list[DeviceState] = []
        deadline = self._clock() + within_s
        try:
            if self._follower is None:
                if self._clock() < self._retry_at:
                    return []
                self._retry_at = self._clock() + RETRY_S
                self._follower, self.away = self._connect(), ""
            while (messages := self._follower.poll(POLL_S)) and self._clock() < deadline:
                found += [state for message in messages if (state := _state(message))]
        except BrokerUnavailable as exc:
            log.warning("%s: claimed samples are not checked against device states", exc)
            self.away = str(exc)
            self._fallen.clear()  # nobody would hear that they are back
            self.close()
        return found


def _state(message: Received) -> DeviceState | None:
    if message.value is None:
        return None
    try:
        return DeviceState.decode(message.value)
    except MalformedRecord:
        return None  # the controller logs it


# --- the teacher ----------------------------------------------------------------------------------


def teacher_shares(task: Task, states: Iterable[DeviceState]) -> list[float]:
    """Return the share of the teacher's answers that are right by class, (classes,) or (1,) for
    targets; empty if no device has an event with a true label and a teacher's."""
    classes = len(task.classes) or 1
    events, right = np.zeros(classes), np.zeros(classes)
    for state in states:
        for kind, (count, hits) in state.teacher_record.items():
            if state.task == task.name and 0 <= kind < classes and count > 0 and hits <= count:
                counted = min(count, CAP)
                events[kind] += counted
                right[kind] += counted * hits / count
    if not events.sum():
        return []
    overall = right.sum() / events.sum()
    found = (right + SHRINK * overall) / (events + SHRINK)
    return [float(share) for share in found.round(4)]
