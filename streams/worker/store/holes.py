"""Holes in `events`: messages that retention deleted before a worker had read them.

    <store>/holes/<partition>.json   a Hole; replaced as a whole

A hole is found by offsets: the partition begins after the offset at which its worker goes on. Which
events were in it is found by seqs, once everything is read that was on the partition when the hole
was surveyed (`until`): what is missing below a seq that came, or below what a device said on
`fleet` that it has delivered (`cursors`), was in the hole. It goes into `drops` as LOST. Messages
that went to `dead-letters` as malformed before a hole count as lost with it.
"""

import logging

from streams.contract.accounting import IntervalSet
from streams.contract.documents import Count, Document
from streams.contract.errors import MalformedRecord
from streams.contract.events.messages import Drop
from streams.runtime.object_store import open_store
from streams.worker.store.place import Place
from streams.worker.windows.partition import Source, StorePosition

LOST = "lost-by-retention"

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
