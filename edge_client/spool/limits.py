"""What bounds the spool, and which of its files are too old.

Times are the wall clock's: that of a file's last write, and now. A clock that was set back is no
reason to drop: a file is taken for no older than the youngest before it, and a file is never older
than a now that lies before its time. A time before 2020, of a clock that was never set, tells
nothing. A clock that is set ahead does make older: nobody can tell that from time that went by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edge_client.spool.frames import SegmentFile

Order = Literal["oldest", "newest"]
NEVER_SET_S = 1_577_836_800.0  # the year 2020


@dataclass(frozen=True)
class SpoolLimits:
    """`file_bytes` closes a file and begins the next, `total_bytes` is the cap of all files,
    `age_s` that of an event. At the cap files give way in the order that `drop` says."""

    file_bytes: int = 4 << 20
    total_bytes: int = 256 << 20
    age_s: float | None = None
    drop: Order = "oldest"

    @classmethod
    def under(cls, total_bytes: int, age_s: float | None, drop: Order) -> "SpoolLimits":
        """With files that are small beside the cap: it is only whole files that give way."""
        return cls(min(cls.file_bytes, total_bytes // 16), total_bytes, age_s, drop)


def aged(files: Sequence[SegmentFile], now_s: float, limit_s: float) -> list[SegmentFile]:
    """Those of the files, in their order, that were last written longer ago than the limit."""
    found, youngest_s = [], 0.0
    for file in files:
        youngest_s = max(youngest_s, file.written_s)
        if file.written_s > NEVER_SET_S and now_s - youngest_s > limit_s:
            found.append(file)
    return found
