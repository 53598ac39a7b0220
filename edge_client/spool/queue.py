"""The durable queue between inference and the network: a folder of append-only segment files.

The file `epoch` holds the epoch's name; frames.py defines the files' format, cursor.py that of the
reader's position.

Invariants
1. Only append() and declare_lost() assign seqs, in order and without a gap, over all files.
2. Only synced frames are read, so a seq that was sent is never assigned again after a crash.
3. A file is deleted when the cursor has passed it, or after a DROPS frame that declares all its
   events and contains its declarations is synced; open() completes this after a crash.
4. A file that the reader has begun is never dropped, because events in flight may arrive. The
   newest file is never dropped: it carries the next seq and the mark.
5. delivered + dropped + pending = produced, at every moment and after every crash.
6. A seq that is neither settled nor in a frame nor declared is lost: its frame is damaged or its
   file is gone. It is declared as "corrupt" at open, and when the cursor passes its position.

Appending frames, as many as are synced together, and what the next open finds after a crash in a
step:

1. while the cap would be exceeded, write and sync a DROPS frame with all events of the oldest file,
   then delete it. Crash between the two (spool-step-1): the file is declared, and is deleted
2. if the newest file is full, create the next one and sync the folder: an empty newest file, whose
   name has the next seq
3. write the frames: a torn one is truncated and its seqs are assigned again; complete ones count.
   Where a power cut leaves a later one and not an earlier, the earlier one's events are corrupt (6)
4. fdatasync
5. count their seqs. After 4 and 5 the frames are there: their events are produced

Recovery at open (recovery.py) truncates a torn tail of the newest file and counts its bytes. A
spool without files starts a new epoch. After an error in 3 or 4, such as a full disk, the file is
truncated to its last frame and no seq is used.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edge_client.spool.cursor import Cursor
from edge_client.spool.frames import (
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
    encoded,
    head_of,
    list_files,
    merged,
)
from edge_client.spool.recovery import events_after, is_declared, survey
from streams.contract.accounting import DeviceAccount, IntervalSet
from streams.contract.errors import SpoolError
from streams.runtime.disk import write_atomic
from streams.runtime.failpoints import Failpoint, unarmed

CORRUPT, FULL = "corrupt", "spool-full"
BATCH_BYTES = 2_000_000  # of frames that are synced together


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
        self._late = IntervalSet()  # declared after their position and not settled yet
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
        found = survey(self._files, self._cursor)
        self._next, self.mark, self.torn_bytes = found.next_seq, found.mark, found.torn_bytes
        self._late = found.late
        for file in self._droppable() if found.late else []:
            if is_declared(file, found.late):
                self._remove(file)
        with contextlib.suppress(OSError):  # a full disk: the next settle() repeats it
            self._declare([Declared(first, last, CORRUPT) for first, last in found.lost])
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
        entries: list[Declared] = []
        for frame in file.frames():
            if frame.kind == DROPS:
                entries += frame.declarations()
            else:
                entries.append(Declared(frame.first, frame.first + frame.count - 1, FULL))
        self._declare(entries)
        self._reached("spool-step-1")
        self._remove(file)

    def _declare(self, entries: list[Declared]) -> None:
        """Declare older seqs in a new frame."""
        if entries:
            payload = encoded(merged(entries))
            head = head_of(DROPS, self._next, 0, self.mark or 0, payload)
            self._write([head, payload], self._next, self.mark)
            for entry in entries:
                self._late.add(entry.first, entry.last)

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
            frames: list[Frame] = []
            size = 0
            for file in list(self._files):
                if file.number < start.file:
                    continue
                offset = start.offset if file.number == start.file else 0
                if offset < file.size and file.number > self._cursor.sent_file:
                    self._cursor.begin(file.number)  # before its frames are sent: invariant 4
                for frame in file.frames(offset):
                    frames.append(frame)
                    size += len(frame.payload)
                    if size >= limit_bytes:
                        return frames
            return frames

    def settle(self, frames: list[Frame], refused: Sequence[Declared] = ()) -> None:
        """Move the cursor past acknowledged `frames` and delete the files before it. Of their
        events the `refused` ones, of one seq each, were declared dropped in place of being sent."""
        with self._lock:
            for frame in frames:
                self._cursor.settle(frame, refused)
                for entry in frame.declarations() if self._late else []:
                    self._late.remove(entry.first, entry.last)
            holes = bool(self._cursor.owed.minus(self._late))
        if holes:
            self._declare_holes()
        with self._lock:
            self._remove_passed()

    def _declare_holes(self) -> None:
        """Declare seqs that were lost since the spool was opened (invariant 6)."""
        with self._writing, self._lock, contextlib.suppress(OSError):  # the next call repeats it
            holes = self._cursor.owed.minus(self._late)
            self._declare([Declared(first, last, CORRUPT) for first, last in holes])

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
        delivered, dropped and pending are counted independently of each other.
        """
        with self._lock:
            there = events_after(self._files, self._cursor.position)
            unsettled = IntervalSet(self._cursor.owed)
            if self._next > self._cursor.settled_seq:
                unsettled.add(self._cursor.settled_seq, self._next - 1)
            pending = len(unsettled) - len(unsettled.minus(there))
            return replace(self.account(), pending=pending)

    def account(self) -> DeviceAccount:
        with self._lock:
            dropped = dict(self._cursor.dropped)
            pending = self._next - self._cursor.delivered - sum(dropped.values())
            return DeviceAccount(self._next, self._cursor.delivered, dropped, pending)
