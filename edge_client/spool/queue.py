"""The durable queue between inference and the network: a folder of append-only segment files.

The file `epoch` holds the epoch's name; frames.py defines the files' format, cursor.py that of the
reader's position.

Invariants
1. Only append() and declare_lost() assign seqs, in order and without a gap, over all files.
2. Only synced frames are read, so a seq that was sent is never assigned again after a crash.
3. A seq has one place, in the order of the files: in an event, or declared dropped. What is in no
   frame, because it is damaged or its file is gone, is declared as "corrupt" where it was.
4. A file is deleted when the cursor has passed it. A dropped file is replaced by one frame that
   declares its events, together with those of dropped files right before it.
5. A file that the reader has begun is never dropped, because events in flight may arrive. The
   newest file is never dropped: it carries the next seq and the mark.
6. delivered + dropped + pending = produced, at every moment and after every crash.

Appending frames, as many as are synced together, and what the next open finds after a crash in a
step:

1. while the cap would be exceeded, replace the oldest file, or a dropped one right before it, by
   the frame that declares its events, by atomic rename; in the second case delete the file. Crash
   between the two (spool-step-1): they are declared already, and the reader passes over the file
2. if the newest file is full, create the next one and sync the folder: an empty newest file, whose
   name has the next seq
3. write the frames: a torn one is truncated and its seqs are assigned again; complete ones count.
   Where a power cut leaves a later one and not an earlier, the earlier one's events are corrupt (3)
4. fdatasync
5. count their seqs. After 4 and 5 the frames are there: their events are produced

Opening reads all files and truncates a torn tail of the newest one. If the tail is damaged instead,
the number of its seqs is unknown, and as many are declared as a frame can have. A spool without
files starts a new epoch. After an error in 3 or 4, such as a full disk, the file is truncated to
its last frame and no seq is used.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from edge_client.spool.cursor import Cursor
from edge_client.spool.frames import (
    CORRUPT,
    DROPS,
    EVENTS,
    HEADER,
    MOST_EVENTS,
    Block,
    Declared,
    Frame,
    SegmentFile,
    SpoolLimits,
    SpoolPosition,
    covering,
    encoded,
    head_of,
    list_files,
    merged,
    torn,
)
from streams.contract.accounting import DeviceAccount
from streams.contract.errors import SpoolError
from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.files import write_atomic

FULL = "spool-full"
BATCH_BYTES = 2_000_000  # of frames that are synced together


class Survey(NamedTuple):
    """What the files have: seqs up to `covered`, and up to `next_seq` some that may have been
    assigned; the last mark; how many bytes are torn; the gaps, their sizes by the first seq."""

    covered: int
    next_seq: int
    mark: int | None
    torn_bytes: int
    gaps: dict[int, int]


def survey(files: Sequence[SegmentFile]) -> Survey:
    """Read all files."""
    at, mark, rest, newest = SpoolPosition(files[0].number, 0, files[0].first), None, b"", files[-1]
    gaps: dict[int, int] = {}
    for frame in covering(files, at):
        at, mark = frame.end, frame.mark
        if frame.gap:
            gaps[frame.first] = frame.count
    sound = at.offset if at.file == newest.number else 0
    if sound < newest.size:
        rest = newest.path.read_bytes()[sound:]
    is_torn = torn(rest)
    next_seq = max(newest.first, at.seq + (0 if is_torn else MOST_EVENTS))
    return Survey(at.seq, next_seq, mark, len(rest) if is_torn else 0, gaps)


class Spool:
    """The spool of one process with one writer thread and one reader thread."""

    def __init__(
        self,
        folder: Path,
        limits: SpoolLimits | None = None,
        *,
        failpoint: Failpoint = unarmed,
    ) -> None:
        self._folder = folder
        self._limits = limits or SpoolLimits()
        self._reached = failpoint
        self._writing = threading.RLock()  # of who appends; taken before the next one
        self._lock = threading.RLock()  # of what is in memory: a sync holds up no reader
        self._next = 0
        self.grown = threading.Event()  # set when a frame was written; its reader clears it
        self.mark: int | None = None
        self.torn_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._files = list_files(folder)
            self.epoch = self._open_epoch()
            self._cursor = Cursor.load(folder, self._files[0])
            self._recover()
        except OSError as exc:
            raise SpoolError(
                f"the spool {folder} cannot be opened: {exc}: check its disk and permissions"
            ) from exc

    def _open_epoch(self) -> str:
        path = self._folder / "epoch"
        if self._files and path.exists():
            return path.read_text().strip()
        for file in self._files:  # no epoch: their seqs have no meaning
            file.path.unlink()
        self._files.clear()
        Cursor.delete(self._folder)
        epoch = f"{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(3)}"
        write_atomic(path, epoch.encode(), mode=0o600)
        self._files.append(SegmentFile.create(self._folder, 0, 0))
        return epoch

    def _recover(self) -> None:
        found, newest, at = survey(self._files), self._files[-1], self._cursor.position
        self.mark, self.torn_bytes, self._gaps = found.mark, found.torn_bytes, found.gaps
        if found.torn_bytes:
            newest.truncate(newest.size - found.torn_bytes)
        end = SpoolPosition(newest.number, newest.size, at.seq)
        self._cursor.position = min(at, end)
        self._next = max(found.covered, at.seq)
        lost = max(0, found.next_seq - self._next)
        try:
            if lost:
                self.declare_lost(lost, CORRUPT)
        except OSError:  # a full disk: the reader finds it when a frame follows
            self._next += lost
        with contextlib.suppress(OSError):
            self._cursor.save_both()  # creates both files; later saves only overwrite
        self._remove_passed()

    # --- writing ----------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def next_seq(self) -> int:
        return self._next

    @property
    def batch_bytes(self) -> int:
        """The most bytes of the blocks of one `extend`."""
        return min(BATCH_BYTES, self._limits.file_bytes)

    def append(self, count: int, payload: bytes, mark: int) -> int:
        """Write `count` events as one frame; see `extend`."""
        return self.extend([Block(count, payload, mark)])

    def extend(self, blocks: Sequence[Block]) -> int:
        """Write events, one frame a block, sync them, and return the first event's seq.

        After OSError (a full disk) nothing is written and no seq is used.
        """
        with self._writing:
            with self._lock:
                self._make_room(sum(len(block.payload) + HEADER for block in blocks))
            first = end = self._next
            parts: list[bytes] = []
            for count, payload, mark in blocks:
                if not 0 < count <= MOST_EVENTS:
                    raise ValueError(f"{count} events in a frame, not 1 to {MOST_EVENTS}")
                parts += (head_of(EVENTS, end, count, mark, payload), payload)
                end += count
            self._write(parts, end, blocks[-1].mark)
            self._reached("spool-step-5")
            return first

    def declare_lost(self, count: int, reason: str, mark: int | None = None) -> None:
        """Use `count` seqs for events that are not written; OSError as in append()."""
        with self._writing:
            mark = self.mark if mark is None else mark
            payload = encoded([Declared(self._next, self._next + count - 1, reason)])
            head = head_of(DROPS, self._next, count, mark or 0, payload)
            self._write([head, payload], self._next + count, mark)

    def _write(self, parts: Sequence[bytes], end: int, mark: int | None) -> None:
        """Append the parts of frames, after which `end` is the next seq."""
        size = sum(map(len, parts))
        with self._lock:
            current = self._files[-1]
            if current.size and current.size + size > self._limits.file_bytes:
                current = self._rotate()
                self._reached("spool-step-2")
        try:
            current.append(parts, self._reached)
        except OSError:
            with self._lock:
                if not current.size or self._cursor.position < (current.number, current.size):
                    raise
                current = self._rotate()  # the full file is settled: deleting it makes room
                self._remove_passed()
            current.append(parts, self._reached)
        self._reached("spool-step-4")
        with self._lock:
            current.extended(size)
            self._next, self.mark = end, mark
        self.grown.set()

    def _rotate(self) -> SegmentFile:
        file = SegmentFile.create(self._folder, self._files[-1].number + 1, self._next)
        self._files.append(file)
        return file

    # --- making room ------------------------------------------------------------------------

    def _make_room(self, needed: int) -> None:
        """Drop the oldest files until `needed` more bytes fit."""
        while sum(f.size for f in self._files) + needed > self._limits.total_bytes:
            victim = next((f for f in self._droppable() if f.has_events), None)
            if victim is None:
                return
            self._drop(victim)

    def _droppable(self) -> list[SegmentFile]:
        begun = max(self._cursor.sent_file, self._cursor.position.file)
        return [f for f in self._files[:-1] if f.number > begun]

    def _drop(self, file: SegmentFile) -> None:
        """Drop the oldest file that has events."""
        into = next((f for f in reversed(self._droppable()) if f.number < file.number), file)
        files = [file] if file is into else [into, file]
        entries, mark = list[Declared](), 0
        for frame in covering(files, SpoolPosition(into.number, 0, into.first)):
            whole, mark = Declared(frame.first, frame.end.seq - 1, FULL), frame.mark
            entries += [whole] if frame.kind == EVENTS else frame.declarations()
        if entries:  # none of a file that was damaged meanwhile
            payload, count = encoded(merged(entries)), entries[-1].last + 1 - into.first
            head = head_of(DROPS, into.first, count, mark, payload)
            write_atomic(into.path, head + payload, mode=0o600)
            into.replaced(len(head) + len(payload))
        self._reached("spool-step-1")
        if file is not into or not entries:
            self._remove(file)

    def _remove(self, file: SegmentFile) -> None:
        file.path.unlink(missing_ok=True)
        self._files.remove(file)

    # --- reading ----------------------------------------------------------------------------

    @property
    def position(self) -> SpoolPosition:
        return self._cursor.position

    def read(self, start: SpoolPosition, limit_bytes: int) -> list[Frame]:
        """Return frames from `start` on, at least one if any, up to about `limit_bytes`."""
        with self._lock:
            frames, size = list[Frame](), 0
            files = [f for f in self._files if f.number >= start.file]
            for frame in covering(files, start):
                if frame.end.file > self._cursor.sent_file:
                    self._cursor.begin(frame.end.file)  # before it is sent: invariant 5
                frames.append(frame)
                size += len(frame.payload)
                if size >= limit_bytes:
                    break
            return frames

    def settle(self, frames: list[Frame], refused: Sequence[Declared] = ()) -> None:
        """Move the cursor past acknowledged `frames` and delete the files before it. Of their
        events the `refused` ones, of one seq each, were declared dropped in place of being sent."""
        with self._lock:
            for frame in frames:
                self._cursor.settle(frame, refused)
            self._remove_passed()

    def _remove_passed(self) -> None:
        at = self._cursor.position
        passed = [f for f in self._files[:-1] if (f.number, f.size) <= (at.file, at.offset)]
        if passed:
            self._cursor.save_both()  # first, so that a cursor never points to a deleted file
            for file in passed:
                self._remove(file)

    def sync_position(self) -> None:
        """Persist the cursor. After a crash without it, settled frames are sent again."""
        with self._lock:
            if self._cursor.changed:
                self._cursor.save()

    def audit(self) -> DeviceAccount:
        """Return the account with the pending events counted in the files, which are all read.

        In account() they are what is left over, so that its equation cannot fail; here produced,
        delivered, dropped and pending are counted independently of each other. What was missing at
        open is known to be corrupt.
        """
        with self._lock:
            at = self._cursor.position
            files = [f for f in self._files if f.number >= at.file]
            pending = sum(
                min(frame.count, self._gaps.get(frame.first, 0)) if frame.gap else frame.count
                for frame in covering(files, at)
            )
            return replace(self.account(), pending=pending)

    def account(self) -> DeviceAccount:
        with self._lock:
            return self._cursor.account(self._next)
