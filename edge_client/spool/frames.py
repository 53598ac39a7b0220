"""The spool's files: rows of frames with a length and a checksum each.

Format (little endian). A file is named `<number>-<first seq>.seg`, both 16 digits, numbers
ascending. A frame is

    u32 length of the payload      u32 CRC32C of all that follows in the frame
    u8  kind   3 x zero            u64 first seq
    u32 count of seqs              i64 mark          payload

Kind EVENTS: `count` events from `first` on. Kind DROPS: the payload is JSON, a list of
[first, last, reason]; `count` is how many fresh seqs the frame itself uses up (events that could
not be written, or are held back, see metering.py), 0 when it declares older ones. `mark` is an
opaque number of the writer (the time of the last event).

A frame counts once it is synced. A write that fails leaves the file as it was. A frame that is
damaged later is passed over: the next sound one behind it is looked for, and whoever reads sees a
hole in the seqs. The end of a file may be torn, a write that did not come to its end, or damaged;
`torn` tells them apart, for the seqs of a torn frame may be handed out again, others never.
"""

import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from crc32c import crc32c

from streams.runtime.disk import sync_directory, write_all
from streams.runtime.failpoints import Failpoint, unarmed

EVENTS, DROPS = 1, 2
_HEAD = struct.Struct("<II")
_BODY = struct.Struct("<B3xQIq")
HEADER = _HEAD.size + _BODY.size
_KIND = re.compile(rb"[\x01\x02]\0\0\0")
TEMPORARY = ".tmp"
MOST_EVENTS = 1024  # in a frame


class SpoolPosition(NamedTuple):
    """A place between two frames."""

    file: int
    offset: int


class Declared(NamedTuple):
    """The seqs first..last are gone, and why."""

    first: int
    last: int
    reason: str


@dataclass(frozen=True)
class Frame:
    """One frame as it is read; `end` is the position behind it."""

    kind: int
    first: int
    count: int
    mark: int
    payload: bytes
    end: SpoolPosition

    def declarations(self) -> list[Declared]:
        """What a DROPS frame says; nothing for a frame of events."""
        return (
            [Declared(*entry) for entry in json.loads(self.payload)] if self.kind == DROPS else []
        )


@dataclass
class SegmentFile:
    """One of the spool's files; `size` counts its whole, synced frames."""

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
            path.unlink()  # or its name would be taken at the next attempt
            raise
        return cls(number, first, path)

    def append(self, head: bytes, payload: bytes, reached: Failpoint = unarmed) -> None:
        """Write a frame behind the last one and sync it; OSError leaves the file as it was."""
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            write_all(fd, head)
            write_all(fd, payload)
            reached("spool-step-3")
            os.fdatasync(fd)
        except OSError:
            os.ftruncate(fd, self.size)  # a full disk leaves a part of the frame
            raise
        finally:
            os.close(fd)
        self.size += len(head) + len(payload)
        self._has_events = None

    def replace(self, content: bytes, reached: Failpoint = unarmed) -> None:
        """Give the file other frames and leave it the time of its last write, atomically:

        1. write the new content beside it and sync it
        2. rename it to the file's name and sync the folder

        OSError in 1 leaves the file as it was.
        """
        temporary = self.path.with_suffix(TEMPORARY)
        written = self.path.stat().st_mtime_ns
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_all(fd, content)
            os.utime(fd, ns=(written, written))
            os.fsync(fd)
        except OSError:
            temporary.unlink()
            raise
        finally:
            os.close(fd)
        reached("thin-step-1")
        temporary.replace(self.path)
        self.size = len(content)
        self._has_events = None
        sync_directory(self.path.parent)
        reached("thin-step-2")

    def truncate(self, size: int) -> None:
        os.truncate(self.path, size)
        self.size = size

    def frames(self, offset: int = 0) -> Iterator[Frame]:
        """The sound frames from `offset` on; none is read before it is asked for."""
        with self.path.open("rb") as stream:
            while offset + HEADER <= self.size:
                frame = self._frame(stream, offset) or self._later_frame(stream, offset)
                if frame is None:
                    return
                offset = frame.end.offset
                yield frame

    def _frame(self, stream: IO[bytes], offset: int) -> Frame | None:
        """The frame at `offset`, if it is sound."""
        stream.seek(offset)
        head = stream.read(HEADER)
        length, checksum = _HEAD.unpack_from(head)
        end = offset + HEADER + length
        if end > self.size:
            return None
        payload = stream.read(length)
        if crc32c(payload, crc32c(head[_HEAD.size :])) != checksum:
            return None
        kind, first, count, mark = _BODY.unpack_from(head, _HEAD.size)
        return Frame(kind, first, count, mark, payload, SpoolPosition(self.number, end))

    def _later_frame(self, stream: IO[bytes], offset: int) -> Frame | None:
        """The next sound frame behind a damaged one."""
        stream.seek(offset + _HEAD.size + 1)
        rest = stream.read(self.size - stream.tell())
        for match in _KIND.finditer(rest):
            begin = offset + 1 + match.start()
            if begin + HEADER <= self.size and (frame := self._frame(stream, begin)):
                return frame
        return None

    @property
    def has_events(self) -> bool:
        """Whether there is an event in it; asked of files that are not written any more."""
        if self._has_events is None:
            self._has_events = any(frame.kind == EVENTS for frame in self.frames())
        return self._has_events

    @property
    def written_s(self) -> float:
        """When it was last written, by the wall clock of that moment."""
        return self.path.stat().st_mtime


def torn(rest: bytes) -> bool:
    """Whether what stands behind the last sound frame is a write that did not come to its end: a
    part of a frame, or zeros that a power cut left. Otherwise a whole frame is damaged."""
    if len(rest) < HEADER or not any(rest):
        return True
    length, checksum = _HEAD.unpack_from(rest)
    if HEADER + length <= len(rest):
        return False
    found = 0
    for at in range(_HEAD.size, len(rest)):  # whole, but for its length?
        found = crc32c(rest[at : at + 1], found)
        if found == checksum:
            return False
    return True


def list_files(folder: Path) -> list[SegmentFile]:
    """The files of a folder in their order."""
    files = []
    for path in sorted(folder.glob("*.seg")):
        number, _, first = path.stem.partition("-")
        if number.isdigit() and first.isdigit():
            files.append(SegmentFile(int(number), int(first), path, path.stat().st_size))
    return files


def remove_leftovers(folder: Path) -> None:
    """Remove what a crash left of a replacement."""
    for path in folder.glob(f"*{TEMPORARY}"):
        path.unlink()


def head_of(kind: int, first: int, count: int, mark: int, payload: bytes) -> bytes:
    """What stands before the payload in a frame."""
    body = _BODY.pack(kind, first, count, mark)
    return _HEAD.pack(len(payload), crc32c(payload, crc32c(body))) + body


def encoded(entries: list[Declared]) -> bytes:
    """The payload of a DROPS frame."""
    return json.dumps(entries).encode()


def merged(entries: list[Declared]) -> list[Declared]:
    """The same declarations with neighbours of one reason joined, so that they stay few."""
    few: list[Declared] = []
    for entry in sorted(entries):
        if few and few[-1].reason == entry.reason and few[-1].last + 1 == entry.first:
            few[-1] = few[-1]._replace(last=entry.last)
        else:
            few.append(entry)
    return few
