"""Recovery: the survey of the spool's files when it is opened.

Every unsettled seq must be in a frame after the cursor or be declared there. Other seqs are lost,
by damage or with a deleted file, and must be declared. A torn tail of the newest file is truncated.
If the tail is damaged instead, the number of its seqs is unknown, and as many are skipped as a
frame can have.
"""

from dataclasses import dataclass, field

from edge_client.spool.cursor import Cursor
from edge_client.spool.frames import EVENTS, MOST_EVENTS, Frame, SegmentFile, SpoolPosition, torn
from streams.contract.accounting import IntervalSet


@dataclass
class Survey:
    """The result: `there` are the seqs after the cursor, as events or declared; `late` are those
    declared after their position; `lost` are missing."""

    next_seq: int = 0
    mark: int | None = None
    torn_bytes: int = 0
    there: IntervalSet = field(default_factory=IntervalSet)
    late: IntervalSet = field(default_factory=IntervalSet)
    lost: list[tuple[int, int]] = field(default_factory=list)


def survey(files: list[SegmentFile], cursor: Cursor, *, repair: bool = True) -> Survey:
    """Read all files, truncate a torn tail if they are to be repaired, and move a cursor beyond the
    end back to it."""
    found = Survey()
    for file in files:
        sound = 0
        found.next_seq = max(found.next_seq, file.first)
        for frame in file.frames():
            sound = frame.end.offset
            found.next_seq = max(found.next_seq, frame.first + frame.count)
            found.mark = frame.mark
            if frame.end > cursor.position:
                _note(found, frame)
        if file is files[-1] and sound < file.size:
            _look_at_end(found, file, sound, repair)
    found.next_seq = max(found.next_seq, cursor.settled_seq)
    cursor.position = min(cursor.position, SpoolPosition(files[-1].number, files[-1].size))
    found.lost = _lost(found, cursor)
    return found


def events_after(files: list[SegmentFile], position: SpoolPosition) -> IntervalSet:
    """Return the seqs of the events and declarations in frames after `position`."""
    found = Survey()
    for file in files:
        for frame in file.frames():
            if frame.end > position:
                _note(found, frame)
    return found.there


def _note(found: Survey, frame: Frame) -> None:
    if frame.kind == EVENTS:
        found.there.add(frame.first, frame.first + frame.count - 1)
    for entry in frame.declarations():
        found.there.add(entry.first, entry.last)
        if entry.first < frame.first:
            found.late.add(entry.first, min(entry.last, frame.first - 1))


def _look_at_end(found: Survey, file: SegmentFile, sound: int, repair: bool) -> None:
    with file.path.open("rb") as stream:
        stream.seek(sound)
        rest = stream.read()
    if torn(rest):
        found.torn_bytes = len(rest)
        if repair:
            file.truncate(sound)
    else:
        found.next_seq += MOST_EVENTS


def _lost(found: Survey, cursor: Cursor) -> list[tuple[int, int]]:
    wanted = IntervalSet(cursor.owed)
    if found.next_seq > cursor.settled_seq:
        wanted.add(cursor.settled_seq, found.next_seq - 1)
    return list(wanted.minus(found.there))


def is_declared(file: SegmentFile, declared: IntervalSet) -> bool:
    """Return whether all events of a file are declared dropped, so its deletion is due."""
    events = [f for f in file.frames() if f.kind == EVENTS]
    return bool(events) and all(
        f.first in declared and f.first + f.count - 1 in declared for f in events
    )
