"""Finds holes in `events`, messages that retention deleted before a worker had read them, and
declares what was in them.

    1  a hole is found, at an assignment or by a jump of the offsets: it is written down
       (below) before an offset behind it is committed
    2  it is surveyed: what devices have delivered, then the partition's end
    3  when everything before that end is acknowledged, what is missing is committed to `drops`
    4  the hole is removed

A crash before the end of 1 finds it again, after 1 to 3 it is read from the disk, and after 3
nothing is missing any more. The ends are the failpoints hole-step-1 to -4.

    <store>/holes/<partition>.json   a Hole; replaced as a whole

A hole is found by offsets: the partition begins after the offset at which its worker continues.
Which events were in it is found by seqs, once everything is read that was on the partition when the
hole was surveyed (`until`): what is missing below a seq that came, or below what a device said on
`fleet` that it has delivered (`cursors`), was in the hole. It goes into `drops` as LOST. Messages
that went to `dead-letters` as malformed before a hole count as lost with it. Events that are
counted by their place in Kafka (streams/contract/events/json_form.py) do not: nothing tells how
many a message had.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from streams.contract.accounting import IntervalSet
from streams.contract.documents import Count, Document
from streams.contract.errors import BrokerUnavailable, MalformedRecord, ProcessFailed
from streams.contract.events.json_items import PLACED
from streams.contract.events.messages import Drop
from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.files import open_store
from streams.worker.store.tables import Place
from streams.worker.windows.partition import PartitionState, Source, StorePosition

LOST = "lost-by-retention"

AGAIN_S = 10.0  # between two attempts to survey
PAUSE_S = 1.0  # before the broker is asked again

T = TypeVar("T")

log = logging.getLogger(__name__)


class Hole(Document):
    """The offsets from `begin` to before `end` were deleted unread. until: the partition's end when
    `cursors` were read, None before that; cursors: (device, epoch, events delivered)."""

    begin: Count
    end: Count
    until: Count | None = None
    cursors: list[tuple[str, str, Count]] = []

    def joined(self, other: "Hole") -> "Hole":
        """Return one hole for both, to be surveyed anew."""
        cursors: dict[Source, int] = {}
        for device, epoch, count in (*self.cursors, *other.cursors):
            cursors[device, epoch] = max(count, cursors.get((device, epoch), 0))
        return Hole(
            begin=min(self.begin, other.begin),
            end=max(self.end, other.end),
            cursors=[(*source, count) for source, count in sorted(cursors.items())],
        )


def lost(position: StorePosition, hole: Hole) -> list[Drop]:
    """Return the events that were in the hole, once everything up to `until` is read."""
    bounds = {(device, epoch): count for device, epoch, count in hole.cursors}
    for sets in (position.taken, position.dropped):
        for source, seqs in sets.items():
            if source[1].startswith(PLACED):  # numbered by offsets, with holes between them
                continue
            last = max((last for _, last in seqs), default=-1)
            bounds[source] = max(last + 1, bounds.get(source, 0))
    nothing = IntervalSet()
    return [
        Drop(*source, first, last, LOST)
        for source, bound in sorted(bounds.items())
        if bound
        for first, last in IntervalSet([(0, bound - 1)]).minus(
            position.taken.get(source, nothing), position.dropped.get(source, nothing)
        )
    ]


def hole_name(partition: int) -> str:
    return f"holes/{partition}.json"


def read_hole(store: Place, partition: int) -> Hole | None:
    """Return the partition's hole; None without one, or if the file cannot be read."""
    name = hole_name(partition)
    try:
        return Hole.decode(open_store(store).read(name))
    except FileNotFoundError:
        return None
    except (OSError, MalformedRecord) as exc:
        log.warning("%s/%s is ignored: %s", store, name, exc)
        return None


def write_hole(store: Place, partition: int, hole: Hole) -> None:
    open_store(store).write(hole_name(partition), hole.encode())


def remove_hole(store: Place, partition: int) -> None:
    open_store(store).remove(hole_name(partition))


async def insisted(ask: Callable[..., Awaitable[T]], *given: Any) -> T:
    """Return the answer; wait for a broker that is away."""
    while True:
        try:
            return await ask(*given)
        except BrokerUnavailable as exc:
            log.warning("%s; trying again in %.0f s", exc, PAUSE_S)
            await asyncio.sleep(PAUSE_S)


Survey = tuple[int, Mapping[Source, int]]  # a partition's end, and what devices had delivered


@dataclass
class HoleKeeper:
    """The holes of the owned partitions.

    store: where the store is; begin: returns a partition's first offset; survey: returns a Survey,
    the end read last; first_in: returns the first message in a range of offsets, None if there is
    none. All raise BrokerUnavailable. The store is written and read beside the event loop: it may
    be far away, and the worker's heartbeats must not wait.
    """

    store: Place
    begin: Callable[[int], Awaitable[int]]
    survey: Callable[[int], Survey]
    first_in: Callable[[int, int, int], int | None]
    failpoint: Failpoint = unarmed
    _holes: dict[int, Hole] = field(default_factory=dict)
    _jumps: dict[int, tuple[int, int]] = field(default_factory=dict)
    _starts: dict[int, int] = field(default_factory=dict)  # of the assignments
    _survey_at: float = 0.0

    def forget(self) -> None:
        """Forget all partitions: their next owner reads the holes from the disk."""
        self._holes.clear()
        self._jumps.clear()
        self._starts.clear()

    async def assigned(self, partition: int, begin: int, goes_on: int) -> None:
        """Step 1: the partition begins at `begin`, its worker goes on at `goes_on`."""
        self._starts[partition] = max(begin, goes_on)
        known = await asyncio.to_thread(read_hole, self.store, partition)
        if known is not None:
            self._holes[partition] = known
        if begin > goes_on:
            await self._found(partition, goes_on, begin)

    def jumped(self, partition: int, expected: int, offset: int) -> None:
        """Note that a message came in place of an earlier one; it may also be that markers of
        transactions are between them."""
        first, last = self._jumps.get(partition, (expected, offset))
        self._jumps[partition] = min(first, expected), max(last, offset)

    async def look(self) -> None:
        """Steps 1 and 2 where they are due; before offsets are committed."""
        jumps, self._jumps = self._jumps, {}
        for partition, (expected, offset) in jumps.items():
            # an offset behind a hole must not be committed before
            if (begin := await insisted(self.begin, partition)) > expected:
                await self._found(partition, expected, min(begin, offset))
            elif expected == self._starts.get(partition):
                await self._refuse_passed_over(partition, expected, offset)
        if time.monotonic() < self._survey_at:
            return
        for partition, hole in self._holes.items():
            if hole.until is None:  # one a flush: each takes about a second
                await self._survey(partition, hole)
                return

    async def _refuse_passed_over(self, partition: int, expected: int, offset: int) -> None:
        """Raise ProcessFailed if the first message of an assignment came although earlier ones are
        there: the commit of its offset would pass them for good. A restart reads them."""
        found = await insisted(asyncio.to_thread, self.first_in, partition, expected, offset)
        if found is not None:
            raise ProcessFailed(
                f"events-{partition}: message {offset} came first, {found} was passed over: the "
                "worker has to be started again"
            )

    async def _survey(self, partition: int, hole: Hole) -> None:
        try:
            until, delivered = await asyncio.to_thread(self.survey, partition)
        except BrokerUnavailable as exc:
            log.warning("the hole in events-%d is not surveyed yet: %s", partition, exc)
            self._survey_at = time.monotonic() + AGAIN_S
            return
        cursors = [(*source, count) for source, count in delivered.items()]
        surveyed = hole.joined(Hole(begin=hole.begin, end=hole.end, cursors=cursors))
        await self._write(partition, surveyed.replace(until=until))
        self.failpoint("hole-step-2")

    def due(self, states: Mapping[int, PartitionState]) -> dict[int, list[Drop]]:
        """Step 3: by partition what was lost, where everything is read that may tell."""
        found = {}
        for partition, hole in self._holes.items():
            done = states[partition].done or 0
            if hole.until is not None and done >= hole.until:
                found[partition] = lost(states[partition].position, hole)
        return found

    async def declared(self, partition: int, drops: list[Drop]) -> None:
        """Step 4, after `drops` are in the store."""
        self.failpoint("hole-step-3")
        hole = self._holes[partition]
        log.warning(
            "events-%d: retention has deleted up to %d messages (%d to %d): %d events of %d "
            "devices are newly declared as lost-by-retention; events that their producers did not "
            "number (epoch, seq) cannot be counted",
            partition, hole.end - hole.begin, hole.begin, hole.end - 1,
            sum(d.last - d.first + 1 for d in drops), len({d.device for d in drops}),
        )  # fmt: skip
        # after it is said: a crash between says it twice, then with nothing new
        await asyncio.to_thread(remove_hole, self.store, partition)
        del self._holes[partition]
        self.failpoint("hole-step-4")

    async def _found(self, partition: int, begin: int, end: int) -> None:
        log.warning(
            "events-%d: retention has deleted the messages %d to %d (%d) before a worker read "
            "them; what their producers numbered is declared once the rest is read",
            partition, begin, end - 1, end - begin,
        )  # fmt: skip
        hole = Hole(begin=begin, end=end)
        known = self._holes.get(partition)
        await self._write(partition, hole if known is None else known.joined(hole))
        self.failpoint("hole-step-1")

    async def _write(self, partition: int, hole: Hole) -> None:
        self._holes[partition] = hole
        await asyncio.to_thread(write_hole, self.store, partition, hole)
