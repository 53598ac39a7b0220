"""Quiet hours: the hours of the day in which no run starts."""

import re
from dataclasses import dataclass

from streams.contract.errors import UsageError

CLOCK = r"([01]?\d|2[0-3]):([0-5]\d)"


@dataclass(frozen=True)
class QuietHours:
    """Minutes of the day, local time: from `begin` until before `end`, possibly over midnight."""

    begin: int
    end: int

    @classmethod
    def parse(cls, text: str) -> "QuietHours":
        """Parse "22:00-06:00"; raise UsageError if it is invalid."""
        found = re.fullmatch(f"{CLOCK}-{CLOCK}", text.strip(), re.ASCII)
        if found is None:
            raise UsageError(f"quiet hours {text!r} are not valid: write them as 22:00-06:00")
        begin, end = (int(found[i]) * 60 + int(found[i + 1]) for i in (1, 3))
        if begin == end:
            raise UsageError(f"quiet hours {text!r} begin and end at once: omit them for none")
        return cls(begin, end)

    def hold(self, minute: int) -> bool:
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end

    def __str__(self) -> str:
        begin, end = (f"{m // 60:02d}:{m % 60:02d}" for m in (self.begin, self.end))
        return f"{begin}-{end}"
