"""The durable queue between inference and the network: a folder of append-only segment files.

`epoch` holds the epoch's name, frames.py has the format of the files, place.py that of the
position, where the reader is.

Invariants
1. Seqs are handed out by append() alone, in order, without a hole, over all files.
2. Only synced frames are read, so nothing that was sent is handed out again after a crash.
3. A file is deleted when the position has passed it, or after a DROPS frame that names all its
   events, and the older declarations in it, is synced; a crash in between is completed at open.
   A file is thinned (thinning.py) by one rename: it has all its events or declares those that it
   lost.
4. A file from which the reader has read is never thinned or dropped: what is on the way may
   arrive. The newest file stays: it carries the next seq and the mark.
5. delivered + dropped + pending = produced, at every moment and after every crash.

6. A seq that is neither settled nor in a frame nor declared is lost: its frame is damaged, or its
   file gone. It is declared ("corrupt") at open, and as soon as the reader has passed its place.

Recovery at open, see recovery.py, truncates a torn tail of the newest file and counts its bytes. A
spool whose files are all gone starts a new epoch.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge_client.spool.compaction import EvictionPolicy, compact, keep_all
from edge_client.spool.cursor import Cursor
from edge_client.spool.frames import (
    DROPS,
    EVENTS,
    HEADER,
    MOST_EVENTS,
    Declared,
    Frame,
    SegmentFile,
    SpoolPosition,
    encoded,
    head_of,
    list_files,
    merged,
    remove_leftovers,
)
from edge_client.spool.limits import SpoolLimits, aged
from edge_client.spool.recovery import is_declared, survey
from streams.contract.accounting import DeviceAccount, IntervalSet
from streams.contract.errors import SpoolError
from streams.runtime.disk import write_atomic
from streams.runtime.failpoints import Failpoint, unarmed

CORRUPT, FULL, AGE = "corrupt", "spool-full", "spool-age"


class Spool:
    """See the module's text. One process, one writer thread and one reader thread."""

    def __init__(
        self,
        folder: Path,
        limits: SpoolLimits | None = None,
        *,
        policy: EvictionPolicy = keep_all,
        clock: Callable[[], float] = time.time,
        failpoint: Failpoint = unarmed,
    ) -> None:
        self._folder = folder
        self._limits = limits or SpoolLimits()
        self._policy = policy
        self._clock = clock
        self._reached = failpoint
        self._compacted: set[int] = set()  # files that would not become smaller
        self._begun_s: float | None = None  # when the newest file got its first frame
        self._lock = threading.RLock()
        self._next = 0
        self._late = IntervalSet()  # declared behind their place, not settled yet
        self.mark: int | None = None
        self.torn_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
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
        for file in self._files:  # no epoch: their seqs belong to nobody
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
        with contextlib.suppress(OSError):  # a full disk: again with the next settlement
            self._declare([Declared(first, last, CORRUPT) for first, last in found.lost])
        with contextlib.suppress(OSError):
            self._cursor.save_both()  # from now on they are only overwritten
        self._remove_passed()

    # --- writing ----------------------------------------------------------------------------

    @property
    def next_seq(self) -> int:
        return self._next

    def append(self, count: int, payload: bytes, mark: int) -> int:
        """Write `count` events as one frame and sync it; return the first one's seq.

        On OSError (a full disk) nothing was written and no seq is used up.
        """
        if not 0 < count <= MOST_EVENTS:
            raise ValueError(f"{count} events in a frame, not 1 to {MOST_EVENTS}")
        with self._lock:
            self._make_room(len(payload) + HEADER)
            first = self._next
            self._write(EVENTS, first, count, mark, payload)
            self._next += count
            self.mark = mark
            self._reached("spool-step-5")
            return first

    def declare_lost(self, count: int, reason: str, mark: int | None = None) -> None:
        """Use up `count` seqs for events that are not written; OSError as with append()."""
        with self._lock:
            mark = self.mark if mark is None else mark
            entry = Declared(self._next, self._next + count - 1, reason)
            self._write(DROPS, self._next, count, mark or 0, encoded([entry]))
            self._next += count
            self.mark = mark

    def _write(self, kind: int, first: int, count: int, mark: int, payload: bytes) -> None:
        current = self._files[-1]
        if current.size and current.size + HEADER + len(payload) > self._limits.file_bytes:
            current = self._rotate()
            self._reached("spool-step-2")
        if not current.size:
            self._begun_s = self._clock()
        head = head_of(kind, first, count, mark, payload)
        try:
            current.append(head, payload, self._reached)
        except OSError:
            if not current.size or self._cursor.position < (current.number, current.size):
                raise
            current = self._rotate()  # all of the file is settled: it can make room itself
            self._remove_passed()
            self._begun_s = self._clock()
            current.append(head, payload, self._reached)
        self._reached("spool-step-4")

    def _rotate(self) -> SegmentFile:
        file = SegmentFile.create(self._folder, self._files[-1].number + 1, self._next)
        self._files.append(file)
        return file

    # --- making room ------------------------------------------------------------------------

    def _make_room(self, needed: int) -> None:
        """EvictionPolicy files, and when there is none left to thin drop some, until `needed` more bytes
        fit."""
        while sum(f.size for f in self._files) + needed > self._limits.total_bytes:
            if self._compact_one():
                continue
            victim = next((f for f in self._victims() if f.has_events), None)
            if victim is None:
                return
            self._drop(victim, FULL)

    def expire(self) -> None:
        """Drop what is older than the limit; to be called about once a minute. OSError as with
        append().

        An event is as old as the last write to its file, see limits.py, and at most an eighth of
        the limit older: then the newest file is closed.
        """
        with self._lock:
            limit_s, now = self._limits.age_s, self._clock()
            if limit_s is None:
                return
            begun_s = self._begun_s
            if self._files[-1].size and (begun_s is None or abs(now - begun_s) > limit_s / 8):
                self._rotate()
            old = aged(self._files, now, limit_s)
            for file in self._droppable():
                if file in old and file.has_events:
                    self._drop(file, AGE)

    def _victims(self) -> list[SegmentFile]:
        files = self._droppable()
        return files if self._limits.drop == "oldest" else files[::-1]

    def _compact_one(self) -> bool:
        """EvictionPolicy the first file that becomes smaller by it, if there is one and the disk has room
        for the smaller one beside it."""
        for file in self._victims():
            if file.number in self._compacted:
                continue
            content = compact(file.frames(), self._policy, FULL)
            if len(content) < file.size:
                try:
                    file.replace(content, self._reached)
                except OSError:
                    return False
                self._compacted.add(file.number)
                return True
            self._compacted.add(file.number)
        return False

    def _droppable(self) -> list[SegmentFile]:
        begun = max(self._cursor.sent_file, self._cursor.position.file)
        return [f for f in self._files[:-1] if f.number > begun]

    def _drop(self, file: SegmentFile, reason: str) -> None:
        entries: list[Declared] = []
        for frame in file.frames():
            if frame.kind == DROPS:
                entries += frame.declarations()
            else:
                entries.append(Declared(frame.first, frame.first + frame.count - 1, reason))
        self._declare(entries)
        self._reached("spool-step-1")
        self._remove(file)

    def _declare(self, entries: list[Declared]) -> None:
        """Declare seqs behind their place."""
        if entries:
            self._write(DROPS, self._next, 0, self.mark or 0, encoded(merged(entries)))
            for entry in entries:
                self._late.add(entry.first, entry.last)

    def _remove(self, file: SegmentFile) -> None:
        file.path.unlink(missing_ok=True)
        self._files.remove(file)
        self._compacted.discard(file.number)

    # --- reading ----------------------------------------------------------------------------

    @property
    def position(self) -> SpoolPosition:
        return self._cursor.position

    def read(self, start: SpoolPosition, limit_bytes: int) -> list[Frame]:
        """The frames from `start` on, at least one if there is any, up to about `limit_bytes`."""
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

    def settle(self, frames: list[Frame]) -> None:
        """`frames` are safe at the broker: move the position, delete the files behind it."""
        with self._lock:
            for frame in frames:
                self._cursor.settle(frame)
                for entry in frame.declarations() if self._late else []:
                    self._late.remove(entry.first, entry.last)
            self._declare_holes()
            self._remove_passed()

    def _declare_holes(self) -> None:
        """Invariant 6, for what was damaged since the spool was opened."""
        holes = IntervalSet(self._cursor.owed)
        for first, last in self._late:
            holes.remove(first, last)
        with contextlib.suppress(OSError):  # a full disk: with the next settlement
            self._declare([Declared(first, last, CORRUPT) for first, last in holes])

    def _remove_passed(self) -> None:
        at = self._cursor.position
        passed = [f for f in self._files[:-1] if (f.number, f.size) <= (at.file, at.offset)]
        if passed:
            self._cursor.save_both()  # before the files go: a position never points into nothing
            for file in passed:
                self._remove(file)

    def sync_position(self) -> None:
        """Write the position down. After a crash without it, settled frames are sent once more."""
        with self._lock:
            self._cursor.save()

    def account(self) -> DeviceAccount:
        with self._lock:
            dropped = dict(self._cursor.dropped)
            pending = self._next - self._cursor.delivered - sum(dropped.values())
            return DeviceAccount(self._next, self._cursor.delivered, dropped, pending)
