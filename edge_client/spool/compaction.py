"""Compaction: rewriting a file of the spool so that low-priority events become declared drops.

The EvictionPolicy decides: it takes a frame of events and returns its parts in order, each with a
payload of its own, or dropped. In the new file every seq keeps its position: kept parts are smaller
EVENTS frames, dropped ones are DROPS frames of fresh seqs, adjacent ones merged. The reader settles
them like all other frames, so there is no other state.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from edge_client.spool.frames import DROPS, EVENTS, Declared, Frame, encoded, head_of, merged


@dataclass(frozen=True)
class FramePart:
    """The next `count` events of a frame; without a payload they are dropped."""

    count: int
    payload: bytes | None


EvictionPolicy = Callable[[Frame], list[FramePart]]


def keep_all(frame: Frame) -> list[FramePart]:
    return [FramePart(frame.count, frame.payload)]


@dataclass
class _Part:
    """A frame to write: events with a payload, or declarations."""

    first: int
    count: int
    mark: int
    payload: bytes | None
    entries: list[Declared]

    def packed(self) -> bytes:
        kind = DROPS if self.payload is None else EVENTS
        payload = encoded(merged(self.entries)) if self.payload is None else self.payload
        return head_of(kind, self.first, self.count, self.mark, payload) + payload


def compact(frames: Iterable[Frame], policy: EvictionPolicy, reason: str) -> bytes:
    """Return the file's new content."""
    parts: list[_Part] = []
    for frame in frames:
        for part in _parts(frame, policy, reason):
            last = parts[-1] if parts else None
            declares = last is not None and last.payload is None and part.payload is None
            if last is not None and declares and last.first + last.count == part.first:
                last.count += part.count
                last.entries += part.entries
                last.mark = part.mark
            else:
                parts.append(part)
    return b"".join(part.packed() for part in parts)


def _parts(frame: Frame, policy: EvictionPolicy, reason: str) -> Iterator[_Part]:
    if frame.kind == DROPS:
        yield _Part(frame.first, frame.count, frame.mark, None, frame.declarations())
        return
    pieces = policy(frame)
    if sum(piece.count for piece in pieces) != frame.count:
        raise ValueError(f"the pieces of {frame.count} events are {pieces}")
    first = frame.first
    for piece in pieces:
        lost = [Declared(first, first + piece.count - 1, reason)] if piece.payload is None else []
        yield _Part(first, piece.count, frame.mark, piece.payload, lost)
        first += piece.count
