"""Where the spool's reader is, and what became of the events before: `position.json`.

{file, offset, seq, sent_file, delivered, dropped}: all before (file, offset) is settled, `seq` is
the first one behind it, `sent_file` the newest file that the reader has begun. `reserve` is room
for it on a full disk.
"""

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from edge_client.frames import EVENTS, Frame, Position, SegmentFile
from streams.contract.disk import write_atomic

RESERVE = 16_384


@dataclass
class Place:
    """The reader's place in memory; `save` writes it down."""

    folder: Path
    position: Position
    settled_seq: int
    delivered: int
    sent_file: int = -1
    dropped: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, oldest: SegmentFile) -> "Place":
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            state = json.loads((folder / "position.json").read_bytes())
            return cls(
                folder,
                Position(int(state["file"]), int(state["offset"])),
                int(state["seq"]),
                int(state["delivered"]),
                int(state["sent_file"]),
                {str(k): int(v) for k, v in state["dropped"].items()},
            )
        # No position was ever written: nothing is settled, unless files are already gone.
        return cls(folder, Position(oldest.number, 0), oldest.first, oldest.first)

    def pass_by(self, frame: Frame) -> None:
        """Count a frame as settled."""
        self.position = frame.end
        self.settled_seq = max(self.settled_seq, frame.first + frame.count)
        if frame.kind == EVENTS:
            self.delivered += frame.count
        for entry in frame.declarations():
            lost = entry.last - entry.first + 1
            self.dropped[entry.reason] = self.dropped.get(entry.reason, 0) + lost

    def begin(self, number: int) -> None:
        """Note that the reader begins a file, before it does."""
        self.sent_file, before = number, self.sent_file
        try:
            self.save()
        except OSError:
            self.sent_file = before
            raise

    def save(self) -> None:
        """On a full disk the reserve makes room: the files that are to be deleted behind the
        position could otherwise never go."""
        try:
            self._write()
        except OSError:
            (self.folder / "reserve").unlink(missing_ok=True)
            self._write()

    def keep_reserve(self) -> None:
        """Hold RESERVE bytes back, as far as the disk has them."""
        path = self.folder / "reserve"
        if path.exists():
            return
        with contextlib.suppress(OSError):
            write_atomic(path, bytes(RESERVE), mode=0o600)

    def _write(self) -> None:
        state = {
            "file": self.position.file,
            "offset": self.position.offset,
            "seq": self.settled_seq,
            "sent_file": self.sent_file,
            "delivered": self.delivered,
            "dropped": self.dropped,
        }
        write_atomic(self.folder / "position.json", json.dumps(state).encode(), mode=0o600)
