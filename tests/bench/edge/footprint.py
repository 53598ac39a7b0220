"""The memory of a process as Linux tells it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Footprint:
    """Bytes: what is resident, its share of what others map too, and what it has for itself."""

    resident: int
    proportional: int
    private: int


def footprint(pid: int | str = "self") -> Footprint:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    fields = (line.split() for line in lines)
    kb = {words[0]: int(words[1]) for words in fields if words[-1] == "kB"}
    private = kb["Private_Clean:"] + kb["Private_Dirty:"]
    return Footprint(kb["Rss:"] * 1024, kb["Pss:"] * 1024, private * 1024)


def children(pid: int) -> list[int]:
    """The processes that a process has started and not yet seen the end of."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]
