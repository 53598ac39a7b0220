"""The cursor of the spool's reader: its position, and the account of the events before it.

Format of `position.0` and `position.1`: 8 hex digits, the CRC-32 of the rest; a line feed; JSON;
spaces up to a multiple of 4096 bytes. The JSON is

    serial              counts the saves; the valid file with the larger serial is current
    file, offset        all frames before this position are settled
    seq                 the first seq after them: the events before were delivered or dropped
    sent_file           the newest file that the reader has begun
    dropped             how many of them were dropped, by reason

The two files are overwritten in place, alternately: on a full disk there is no room for a new file,
and settled files could never be deleted. A crash while writing one leaves the other. (A
copy-on-write file system may need space anyway.)
"""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from edge_client.spool.frames import EVENTS, Declared, Frame, SegmentFile, SpoolPosition
from streams.contract.accounting import DeviceAccount
from streams.runtime.files import sync_directory, write_all

BLOCK = 4096
NAMES = ("position.0", "position.1")


@dataclass
class Cursor:
    """The reader's cursor in memory; `save` persists it."""

    folder: Path
    position: SpoolPosition
    sent_file: int = -1
    dropped: dict[str, int] = field(default_factory=dict)
    serial: int = 0
    changed: bool = True  # since the last save

    @classmethod
    def load(cls, folder: Path, oldest: SegmentFile) -> "Cursor":
        found = [cursor for name in NAMES if (cursor := cls._read(folder, name)) is not None]
        if found:
            return max(found, key=lambda cursor: cursor.serial)
        # Never saved: nothing is settled, unless files are already gone.
        return cls(folder, SpoolPosition(oldest.number, 0, oldest.first))

    @classmethod
    def _read(cls, folder: Path, name: str) -> "Cursor | None":
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            text = (folder / name).read_bytes()
            if int(text[:8], 16) != crc32(text[9:]):
                return None
            state = json.loads(text[9:])
            at = SpoolPosition(state["file"], state["offset"], state["seq"])
            return cls(folder, at, state["sent_file"], state["dropped"], state["serial"])
        return None

    @staticmethod
    def delete(folder: Path) -> None:
        for name in NAMES:
            (folder / name).unlink(missing_ok=True)

    def settle(self, frame: Frame, refused: Sequence[Declared] = ()) -> None:
        """Settle a frame, whose `refused` events were declared in place of being sent."""
        self.position, self.changed = frame.end, True
        inside = [d for d in refused if frame.first <= d.first < frame.end.seq]
        for entry in inside if frame.kind == EVENTS else frame.declarations():
            lost = entry.last - entry.first + 1
            self.dropped[entry.reason] = self.dropped.get(entry.reason, 0) + lost

    def account(self, produced: int) -> DeviceAccount:
        """Return the account of so many events."""
        settled, dropped = self.position.seq, dict(self.dropped)
        delivered = settled - sum(dropped.values())
        return DeviceAccount(produced, delivered, dropped, produced - settled)

    def begin(self, number: int) -> None:
        """Persist that the reader begins a file, before it does."""
        self.sent_file, before = number, self.sent_file
        try:
            self.save()
        except OSError:
            self.sent_file = before
            raise

    def save(self) -> None:
        """Overwrite the older of the two files."""
        state = {
            "serial": self.serial + 1,
            "file": self.position.file,
            "offset": self.position.offset,
            "seq": self.position.seq,
            "sent_file": self.sent_file,
            "dropped": self.dropped,
        }
        text = json.dumps(state).encode()
        text += b" " * (-(len(text) + 9) % BLOCK)
        path = self.folder / NAMES[(self.serial + 1) % 2]
        new = not path.exists()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            write_all(fd, b"%08x\n" % crc32(text) + text)
            os.ftruncate(fd, 9 + len(text))
            os.fdatasync(fd)
        finally:
            os.close(fd)
        if new:
            sync_directory(self.folder)
        self.serial += 1
        self.changed = False

    def save_both(self) -> None:
        """Save to both files, before files of the spool are deleted."""
        self.save()
        self.save()
