"""The spool's file format: frames with a length and a checksum.

Format (little endian). A file is named `<number>-<first seq>.seg`, both 16 digits, numbers
ascending. A frame is

    u32 length of the payload      u32 CRC-32 of the rest of the frame
    u8  kind   3 x zero            u64 first seq
    u32 count of seqs              i64 mark          payload

A frame is of the `count` seqs from `first` on. Kind EVENTS: the events. Kind DROPS: the payload is
JSON, a list of [first, last, reason] that has each of them: events that could not be written or are
not sent (writer.py), or of files that were dropped. `mark` is an opaque number of the writer (the
time of the last event).

A frame is valid once it is synced. A failed write leaves the file unchanged. A frame damaged later
is skipped: the reader continues at the next valid one, and what is missing between them is CORRUPT
(`covering`). The end of a file may be torn (an incomplete write) or damaged; `torn` distinguishes
them, because only the seqs of a torn frame may be used again.
"""

import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NamedTuple
from zlib import crc32

from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.files import sync_directory, write_all

EVENTS, DROPS = 1, 2
CORRUPT = "corrupt"
_HEAD = struct.Struct("<II")
_BODY = struct.Struct("<B3xQIq")
HEADER = _HEAD.size + _BODY.size
_KIND = re.compile(rb"[\x01\x02]\0\0\0")
MOST_EVENTS = 1024  # per frame


@dataclass(frozen=True)
class SpoolLimits:
    """Bytes of one file, and of all files: at the cap whole files are dropped, the oldest first."""

    file_bytes: int = 16 << 20
    total_bytes: int = 256 << 20

    @classmethod
    def under(cls, total_bytes: int) -> "SpoolLimits":
        """Return limits with files small relative to the cap, because whole files are dropped."""
        return cls(min(cls.file_bytes, total_bytes // 16), total_bytes)


class Block(NamedTuple):
    """Events that become one frame."""

    events: int  # how many
    payload: bytes
    mark: int


class SpoolPosition(NamedTuple):
    """A position between two frames, and the first seq after it."""

    file: int
    offset: int
    seq: int


class Declared(NamedTuple):
    """A declaration that the events first..last are lost, with the reason."""

    first: int
    last: int
    reason: str


@dataclass(frozen=True)
class Frame:
    """One frame read from a file; `end` is the position after it. `gap`: it stands for what is in
    no file."""

    kind: int
    first: int
    count: int
    mark: int
    payload: bytes
    end: SpoolPosition
    gap: bool = False

    def declarations(self) -> list[Declared]:
        """Return the declarations of a DROPS frame; none for events."""
        entries = json.loads(self.payload) if self.kind == DROPS else []
        return [Declared(*entry) for entry in entries]

    def since(self, seq: int) -> "Frame | None":
        """Return the frame without what is before `seq`; None if that is all of it."""
        if self.first >= seq:
            return self
        rest = [d._replace(first=max(d.first, seq)) for d in self.declarations() if d.last >= seq]
        payload, count = encoded(rest), self.end.seq - seq
        return replace(self, first=seq, count=count, payload=payload) if rest else None


@dataclass
class SegmentFile:
    """One file of the spool; `size` is that of its complete, synced frames."""

    number: int
    first: int
    path: Path
    size: int = 0
    _has_events: bool | None = None

    @classmethod
    def create(cls, folder: Path, number: int, first: int) -> "SegmentFile":
        path = folder / f"{number:016d}-{first:016d}.seg"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            sync_directory(folder)
        except OSError:
            path.unlink()  # otherwise the next attempt fails on the existing name
            raise
        return cls(number, first, path)

    def append(self, parts: Sequence[bytes], reached: Failpoint = unarmed) -> None:
        """Append the parts of frames and sync them, which `extended` makes readable; OSError leaves
        the file unchanged."""
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            for part in parts:
                write_all(fd, part)
            reached("spool-step-3")
            os.fdatasync(fd)
        except OSError:
            os.ftruncate(fd, self.size)  # a full disk leaves a part
            raise
        finally:
            os.close(fd)

    def extended(self, size: int) -> None:
        """Count so many bytes that were appended."""
        self.size += size
        self._has_events = None

    def replaced(self, size: int) -> None:
        """Note that one frame of DROPS stands in place of what was there."""
        self.size, self._has_events = size, False

    def truncate(self, size: int) -> None:
        os.truncate(self.path, size)
        self.size = size

    def frames(self, offset: int = 0) -> Iterator[Frame]:
        """Yield the valid frames from `offset` on, reading lazily."""
        with self.path.open("rb") as stream:
            while offset + HEADER <= self.size:
                frame = self._frame(stream, offset) or self._later_frame(stream, offset)
                if frame is None:
                    return
                offset = frame.end.offset
                yield frame

    def _frame(self, stream: IO[bytes], offset: int) -> Frame | None:
        stream.seek(offset)
        head = stream.read(HEADER)
        length, checksum = _HEAD.unpack_from(head)
        end = offset + HEADER + length
        if end > self.size:
            return None
        payload = stream.read(length)
        if crc32(payload, crc32(head[_HEAD.size :])) != checksum:
            return None
        kind, first, count, mark = _BODY.unpack_from(head, _HEAD.size)
        at = SpoolPosition(self.number, end, first + count)
        return Frame(kind, first, count, mark, payload, at)

    def _later_frame(self, stream: IO[bytes], offset: int) -> Frame | None:
        """Return the next valid frame after a damaged one."""
        stream.seek(offset + _HEAD.size + 1)
        rest = stream.read(self.size - stream.tell())
        for match in _KIND.finditer(rest):
            begin = offset + 1 + match.start()
            if begin + HEADER <= self.size and (frame := self._frame(stream, begin)):
                return frame
        return None

    @property
    def has_events(self) -> bool:
        """Whether the file has events; cached, so only for files that are complete."""
        if self._has_events is None:
            self._has_events = any(frame.kind == EVENTS for frame in self.frames())
        return self._has_events


def covering(files: Iterable[SegmentFile], start: SpoolPosition) -> Iterator[Frame]:
    """Yield frames from `start` on that have each seq once and in order: what is in none of the
    files as a gap, declared CORRUPT, before the next frame."""
    seq = start.seq
    for file in files:
        offset = start.offset if file.number == start.file else 0
        for found in file.frames(offset):
            if found.first > seq:
                begin = found.end.offset - HEADER - len(found.payload)
                lost = encoded([Declared(seq, found.first - 1, CORRUPT)])
                at = SpoolPosition(file.number, begin, found.first)
                yield Frame(DROPS, seq, found.first - seq, found.mark, lost, at, gap=True)
            if (frame := found.since(seq)) is not None:
                yield frame
                seq = frame.end.seq


def torn(rest: bytes) -> bool:
    """Return whether the bytes after the last valid frame are an incomplete write: part of a frame,
    or zeros after a power cut. Otherwise a complete frame is damaged."""
    if len(rest) < HEADER or not any(rest):
        return True
    length, checksum = _HEAD.unpack_from(rest)
    if HEADER + length <= len(rest):
        return False
    found = 0
    for at in range(_HEAD.size, len(rest)):  # complete, only the length is damaged?
        found = crc32(rest[at : at + 1], found)
        if found == checksum:
            return False
    return True


def list_files(folder: Path) -> list[SegmentFile]:
    """Return the files of a folder in order."""
    files = []
    for path in sorted(folder.glob("*.seg")):
        number, _, first = path.stem.partition("-")
        if number.isdigit() and first.isdigit():
            files.append(SegmentFile(int(number), int(first), path, path.stat().st_size))
    return files


def head_of(kind: int, first: int, count: int, mark: int, payload: bytes) -> bytes:
    """Return the bytes of a frame before its payload."""
    body = _BODY.pack(kind, first, count, mark)
    return _HEAD.pack(len(payload), crc32(payload, crc32(body))) + body


def encoded(entries: list[Declared]) -> bytes:
    """Return the payload of a DROPS frame."""
    return json.dumps(entries).encode()


def merged(entries: list[Declared]) -> list[Declared]:
    """Return the declarations with adjacent ones of the same reason merged."""
    few: list[Declared] = []
    for entry in sorted(entries):
        if few and few[-1].reason == entry.reason and few[-1].last + 1 == entry.first:
            few[-1] = few[-1]._replace(last=entry.last)
        else:
            few.append(entry)
    return few
