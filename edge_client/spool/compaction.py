"""Rewriting a file of the spool with fewer events: those of low priority become declared drops.

What an event is worth is not the spool's to know: `EvictionPolicy` takes a frame of events and returns its
pieces in order, each some events as a payload of their own, or dropped. In the thinned file every
seq keeps its place: kept pieces are smaller frames of events, dropped ones DROPS frames of fresh
seqs, neighbours joined. So the reader settles them as any other frame and nothing else has to be
remembered.
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
    """Every event is worth the same."""
    return [FramePart(frame.count, frame.payload)]


@dataclass
class _Part:
    """A frame to be: events with a payload, or declarations."""

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
    """The file's new content."""
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
