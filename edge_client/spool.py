"""The durable queue between inference and the network: a folder of append-only segment files.

Format (little endian). `epoch` holds the epoch's name. A file `<number>-<first seq>.seg`, both 16
digits, numbers ascending, is a row of frames:

    u32 length of the payload      u32 CRC32C of all that follows in the frame
    u8  kind   3 x zero            u64 first seq
    u32 count of seqs              i64 mark          payload

Kind EVENTS: `count` events from `first` on. Kind DROPS: the payload is JSON, a list of
[first, last, reason]; `count` is how many fresh seqs the frame itself uses up (events that could
not be written, or are held back, see metering.py), 0 when it declares older ones. `mark` is an
opaque number of the writer (the time of the last event). `position.json` is where the reader is:
{file, offset, seq, sent_file, delivered, dropped}; all before (file, offset) is settled, `seq` is
the first one behind it.
`reserve` is room for the position on a full disk.

Invariants
1. Seqs are handed out by append() alone, in order, without a hole, over all files.
2. Only synced frames are read, so nothing that was sent is handed out again after a crash.
3. A file is deleted when the position has passed it, or after a DROPS frame that names all its
   events, and the older declarations in it, is synced; a crash in between is completed at open.
4. A file from which the reader has read is never dropped to make room: what is on the way may
   arrive. The newest file stays: it carries the next seq and the mark.
5. delivered + dropped + pending = produced, at every moment and after every crash.

Recovery at open truncates a torn tail of the newest file and counts its bytes. A file that is
damaged further back loses its rest, which is declared dropped ("corrupt"). A spool whose files
are gone starts a new epoch.
"""

import contextlib
import json
import os
import secrets
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from streams.contract.accounting import DeviceAccount, IntervalSet
from streams.contract.disk import sync_directory, write_all, write_atomic
from streams.contract.errors import SpoolError

EVENTS, DROPS = 1, 2
_HEAD = struct.Struct("<II")
_BODY = struct.Struct("<B3xQIq")
HEADER = _HEAD.size + _BODY.size
RESERVE = 16_384


@dataclass(frozen=True)
class SpoolLimits:
    """Bytes at which a file is closed and the next begun, and that the whole folder may hold."""

    file_bytes: int = 2 << 20
    total_bytes: int = 256 << 20


class Position(NamedTuple):
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
    end: Position

    def declarations(self) -> list[Declared]:
        return [Declared(*entry) for entry in json.loads(self.payload)]


@dataclass
class _File:
    number: int
    first: int
    path: Path
    size: int = 0


class Spool:
    """See the module's text. One process, one writer thread and one reader thread."""

    def __init__(self, folder: Path, limits: SpoolLimits | None = None) -> None:
        self._folder = folder
        self._limits = limits or SpoolLimits()
        self._lock = threading.RLock()
        self._delivered = 0
        self._dropped: dict[str, int] = {}
        self._position = Position(0, 0)
        self._settled_seq = 0
        self._sent_file = -1
        self._next = 0
        self.mark: int | None = None
        self.torn_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._files = self._list()
            self.epoch = self._open_epoch()
            self._recover()
            self._keep_reserve()
        except OSError as exc:
            raise SpoolError(
                f"the spool {folder} cannot be opened: {exc}: check its disk and permissions"
            ) from exc

    # --- writing ----------------------------------------------------------------------------

    @property
    def next_seq(self) -> int:
        return self._next

    def append(self, count: int, payload: bytes, mark: int) -> int:
        """Write `count` events as one frame and sync it; return the first one's seq.

        On OSError (a full disk) nothing was written and no seq is used up.
        """
        with self._lock:
            self._make_room(len(payload) + HEADER)
            first = self._next
            self._write(EVENTS, first, count, mark, payload)
            self._next += count
            self.mark = mark
            return first

    def declare_lost(self, count: int, reason: str, mark: int | None = None) -> None:
        """Use up `count` seqs for events that are not written; OSError as with append()."""
        with self._lock:
            mark = self.mark if mark is None else mark
            entry = [[self._next, self._next + count - 1, reason]]
            self._write(DROPS, self._next, count, mark or 0, json.dumps(entry).encode())
            self._next += count
            self.mark = mark

    def _write(self, kind: int, first: int, count: int, mark: int, payload: bytes) -> None:
        current = self._files[-1]
        if current.size and current.size + HEADER + len(payload) > self._limits.file_bytes:
            current = self._rotate()
        body = _BODY.pack(kind, first, count, mark) + payload
        frame = _HEAD.pack(len(payload), crc32c(body)) + body
        fd = os.open(current.path, os.O_WRONLY | os.O_APPEND)
        try:
            write_all(fd, frame)
            os.fdatasync(fd)
        except OSError:
            os.ftruncate(fd, current.size)  # a full disk leaves a part of the frame
            raise
        finally:
            os.close(fd)
        current.size += len(frame)

    def _rotate(self) -> _File:
        number = self._files[-1].number + 1
        file = self._create(number, self._next)
        self._files.append(file)
        return file

    def _create(self, number: int, first: int) -> _File:
        path = self._folder / f"{number:016d}-{first:016d}.seg"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        sync_directory(self._folder)
        return _File(number, first, path)

    def _make_room(self, needed: int) -> None:
        """Drop the oldest files that the reader has not begun, until `needed` more bytes fit."""
        while sum(f.size for f in self._files) + needed > self._limits.total_bytes:
            victim = next((f for f in self._droppable() if self._has_events(f)), None)
            if victim is None:
                return
            self._drop(victim, "spool-full")

    def _has_events(self, file: _File) -> bool:
        return any(frame.kind == EVENTS for frame in self._frames(file))

    def _droppable(self) -> list[_File]:
        begun = max(self._sent_file, self._position.file)
        return [f for f in self._files[:-1] if f.number > begun]

    def _drop(self, file: _File, reason: str) -> None:
        entries: list[Declared] = []
        for frame in self._frames(file):
            if frame.kind == DROPS:
                entries += frame.declarations()
            else:
                entries.append(Declared(frame.first, frame.first + frame.count - 1, reason))
        text = json.dumps(merged(entries)).encode()
        self._write(DROPS, self._next, 0, self.mark or 0, text)
        self._remove(file)

    def _remove(self, file: _File) -> None:
        file.path.unlink(missing_ok=True)
        self._files.remove(file)

    # --- reading ----------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        return self._position

    def read(self, start: Position, limit_bytes: int) -> list[Frame]:
        """The frames from `start` on, at least one if there is any, up to about `limit_bytes`."""
        with self._lock:
            frames: list[Frame] = []
            size = 0
            for file in list(self._files):
                if file.number < start.file:
                    continue
                offset = start.offset if file.number == start.file else 0
                if offset < file.size and file.number > self._sent_file:
                    self._save(sent_file=file.number)  # before its frames are sent: invariant 4
                for frame in self._frames(file, offset):
                    frames.append(frame)
                    size += len(frame.payload)
                    if size >= limit_bytes:
                        return frames
            return frames

    def settle(self, frames: list[Frame]) -> None:
        """`frames` are safe at the broker: move the position, delete the files behind it."""
        with self._lock:
            for frame in frames:
                self._position = frame.end
                self._settled_seq = max(self._settled_seq, frame.first + frame.count)
                if frame.kind == EVENTS:
                    self._delivered += frame.count
                for entry in frame.declarations() if frame.kind == DROPS else []:
                    lost = entry.last - entry.first + 1
                    self._dropped[entry.reason] = self._dropped.get(entry.reason, 0) + lost
            at = self._position
            passed = [f for f in self._files[:-1] if (f.number, f.size) <= (at.file, at.offset)]
            if passed:
                self._save()  # before the files go: a position never points into nothing
                for file in passed:
                    self._remove(file)
                self._keep_reserve()

    def sync_position(self) -> None:
        """Write the position down. After a crash without it, settled frames are sent once more."""
        with self._lock:
            self._save()

    def account(self) -> DeviceAccount:
        with self._lock:
            dropped = dict(self._dropped)
            pending = self._next - self._delivered - sum(dropped.values())
            return DeviceAccount(self._next, self._delivered, dropped, pending)

    def _save(self, sent_file: int | None = None) -> None:
        """Write the position down. On a full disk the reserve makes room: the files that are to
        be deleted behind the position could otherwise never go."""
        self._sent_file, before = sent_file or self._sent_file, self._sent_file
        try:
            try:
                self._write_position()
            except OSError:
                (self._folder / "reserve").unlink(missing_ok=True)
                self._write_position()
        except OSError:
            self._sent_file = before
            raise

    def _keep_reserve(self) -> None:
        """Hold RESERVE bytes back, as far as the disk has them."""
        path = self._folder / "reserve"
        if path.exists():
            return
        with contextlib.suppress(OSError):
            write_atomic(path, bytes(RESERVE), mode=0o600)

    def _write_position(self) -> None:
        state = {
            "file": self._position.file,
            "offset": self._position.offset,
            "seq": self._settled_seq,
            "sent_file": self._sent_file,
            "delivered": self._delivered,
            "dropped": self._dropped,
        }
        write_atomic(self._folder / "position.json", json.dumps(state).encode(), mode=0o600)

    def _frames(self, file: _File, offset: int = 0) -> Iterator[Frame]:
        """The sound frames of a file from `offset` on, within its known size; none is read before
        it is asked for."""
        with file.path.open("rb") as stream:
            stream.seek(offset)
            while offset + HEADER <= file.size:
                length, checksum = _HEAD.unpack(stream.read(_HEAD.size))
                offset += HEADER + length
                if offset > file.size:
                    return
                body = stream.read(_BODY.size + length)
                if crc32c(body) != checksum:
                    return
                kind, first, count, mark = _BODY.unpack_from(body)
                place = Position(file.number, offset)
                yield Frame(kind, first, count, mark, body[_BODY.size :], place)

    # --- recovery ---------------------------------------------------------------------------

    def _list(self) -> list[_File]:
        files = []
        for path in sorted(self._folder.glob("*.seg")):
            number, _, first = path.stem.partition("-")
            if number.isdigit() and first.isdigit():
                files.append(_File(int(number), int(first), path, path.stat().st_size))
        return files

    def _open_epoch(self) -> str:
        path = self._folder / "epoch"
        if self._files and path.exists():
            return path.read_text().strip()
        for file in self._files:  # no epoch: their seqs belong to nobody
            file.path.unlink()
        self._files.clear()
        (self._folder / "position.json").unlink(missing_ok=True)
        epoch = f"{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(3)}"
        write_atomic(path, epoch.encode(), mode=0o600)
        self._files.append(self._create(0, 0))
        return epoch

    def _recover(self) -> None:
        self._load_position()
        declared = IntervalSet()
        damaged: list[tuple[_File, int, int]] = []  # file, first lost seq, seq behind its end
        for i, file in enumerate(self._files):
            frames = list(self._frames(file))
            sound = frames[-1].end.offset if frames else 0
            self._next = frames[-1].first + frames[-1].count if frames else file.first
            self.mark = frames[-1].mark if frames else self.mark
            for frame in frames:
                for entry in frame.declarations() if frame.kind == DROPS else []:
                    declared.add(entry.first, entry.last)
            if sound < file.size and file is self._files[-1]:
                self._truncate_tail(file, sound)
            elif sound < file.size:
                damaged.append((file, self._next, self._files[i + 1].first))
        self._next = max(self._next, self._settled_seq)
        self._finish_drops(declared)
        self._declare_damage(damaged, declared)

    def _truncate_tail(self, file: _File, sound: int) -> None:
        self.torn_bytes += file.size - sound
        os.truncate(file.path, sound)
        file.size = sound
        if self._position.file == file.number:
            offset = min(self._position.offset, sound)
            self._position = Position(file.number, offset)

    def _declare_damage(self, damaged: list[tuple[_File, int, int]], declared: IntervalSet) -> None:
        """Declare what is lost, then cut the damage off; a crash between finds it declared."""
        entries: list[Declared] = []
        for file, first, behind in damaged:
            start = max(first, self._settled_seq) if file.number <= self._position.file else first
            known = IntervalSet(declared)
            if start:
                known.add(0, start - 1)
            entries += [Declared(a, b, "corrupt") for a, b in known.missing(behind)]
        if entries:
            text = json.dumps(entries).encode()
            self._write(DROPS, self._next, 0, self.mark or 0, text)
        for file, _, _ in damaged:
            frames = list(self._frames(file))
            file.size = frames[-1].end.offset if frames else 0
            os.truncate(file.path, file.size)

    def _finish_drops(self, declared: IntervalSet) -> None:
        """Delete the files whose events are all declared dropped: a crash came in between."""
        for file in self._droppable():
            events = [f for f in self._frames(file) if f.kind == EVENTS]
            if events and all(
                f.first in declared and f.first + f.count - 1 in declared for f in events
            ):
                self._remove(file)

    def _load_position(self) -> None:
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            state = json.loads((self._folder / "position.json").read_bytes())
            self._position = Position(int(state["file"]), int(state["offset"]))
            self._settled_seq = int(state["seq"])
            self._sent_file = int(state["sent_file"])
            self._delivered = int(state["delivered"])
            self._dropped = {str(k): int(v) for k, v in state["dropped"].items()}
            return
        # No position was ever written: nothing is settled, unless files are already gone.
        self._position = Position(self._files[0].number, 0)
        self._settled_seq = self._delivered = self._files[0].first


def merged(entries: list[Declared]) -> list[Declared]:
    """The same declarations with neighbours of one reason joined, so that they stay few."""
    few: list[Declared] = []
    for entry in sorted(entries):
        if few and few[-1].reason == entry.reason and few[-1].last + 1 == entry.first:
            few[-1] = few[-1]._replace(last=entry.last)
        else:
            few.append(entry)
    return few
