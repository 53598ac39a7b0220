"""What the spool's files hold when it is opened, and what is to be done about it.

A torn tail of the newest file is cut off. A file that is damaged further back loses its rest,
which is declared dropped ("corrupt") before it is cut off. A file whose events are all declared
dropped was to be deleted when the process ended.
"""

from dataclasses import dataclass, field

from edge_client.frames import EVENTS, Declared, Position, SegmentFile
from edge_client.place import Place
from streams.contract.accounting import IntervalSet


@dataclass
class Survey:
    """`declared`: seqs that DROPS frames name. `damaged`: files and where their sound part ends."""

    next_seq: int = 0
    mark: int | None = None
    torn_bytes: int = 0
    declared: IntervalSet = field(default_factory=IntervalSet)
    damaged: list[tuple[SegmentFile, int]] = field(default_factory=list)
    lost: list[Declared] = field(default_factory=list)


def survey(files: list[SegmentFile], place: Place) -> Survey:
    """Read all files, cut off a torn tail."""
    found = Survey()
    holes: list[tuple[SegmentFile, int, int]] = []  # file, first lost seq, seq behind its end
    for i, file in enumerate(files):
        frames = list(file.frames())
        sound = frames[-1].end.offset if frames else 0
        found.next_seq = frames[-1].first + frames[-1].count if frames else file.first
        found.mark = frames[-1].mark if frames else found.mark
        for frame in frames:
            for entry in frame.declarations():
                found.declared.add(entry.first, entry.last)
        if sound < file.size and file is files[-1]:
            found.torn_bytes += file.size - sound
            file.truncate(sound)
            if place.position.file == file.number:
                place.position = Position(file.number, min(place.position.offset, sound))
        elif sound < file.size:
            found.damaged.append((file, sound))
            holes.append((file, found.next_seq, files[i + 1].first))
    found.next_seq = max(found.next_seq, place.settled_seq)
    found.lost = _lost(holes, place, found.declared)
    return found


def _lost(
    holes: list[tuple[SegmentFile, int, int]], place: Place, declared: IntervalSet
) -> list[Declared]:
    entries: list[Declared] = []
    for file, first, behind in holes:
        start = max(first, place.settled_seq) if file.number <= place.position.file else first
        known = IntervalSet(declared)
        if start:
            known.add(0, start - 1)
        entries += [Declared(a, b, "corrupt") for a, b in known.missing(behind)]
    return entries


def is_declared(file: SegmentFile, declared: IntervalSet) -> bool:
    """Whether all events of a file are declared dropped."""
    events = [f for f in file.frames() if f.kind == EVENTS]
    return bool(events) and all(
        f.first in declared and f.first + f.count - 1 in declared for f in events
    )
