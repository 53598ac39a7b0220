"""Limits of the spool, and the files that are too old.

The age of a file is the wall clock's time since its last write. A clock that was set back drops
nothing: no file counts as older than the youngest file before it, and a write time in the future
counts as age 0. A time before 2020, from a clock that was never set, is ignored. A clock set ahead
makes files older, because that cannot be distinguished from time that passed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_client.spool.frames import SegmentFile

NEVER_SET_S = 1_577_836_800.0  # the year 2020


@dataclass(frozen=True)
class SpoolLimits:
    """Limits: `file_bytes` of one file, `total_bytes` of all files, `age_s` of an event.

    At the cap whole files are dropped, the oldest first.
    """

    file_bytes: int = 4 << 20
    total_bytes: int = 256 << 20
    age_s: float | None = None

    @classmethod
    def under(cls, total_bytes: int, age_s: float | None) -> "SpoolLimits":
        """Return limits with files small relative to the cap, because whole files are dropped."""
        return cls(min(cls.file_bytes, total_bytes // 16), total_bytes, age_s)


def aged(files: Sequence[SegmentFile], now_s: float, limit_s: float) -> list[SegmentFile]:
    """Return the files, in order, whose last write is older than the limit."""
    found, youngest_s = [], 0.0
    for file in files:
        youngest_s = max(youngest_s, file.written_s)
        if file.written_s > NEVER_SET_S and now_s - youngest_s > limit_s:
            found.append(file)
    return found
