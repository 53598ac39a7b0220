"""CPU and memory of the processes that `tidewheel up` runs for a state folder, from /proc (Linux).

The folder's lock names `up`. Each of its children leads a session of its own and writes to
`<state>/logs/<name>.log`: that is its name, and all processes of the session count with it.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

PROC = Path("/proc")
LEAST_S = 2.0  # between two measurements
PARENT, SESSION, USER, SYSTEM, PAGES = 1, 3, 11, 12, 21  # fields behind the name in stat


class ProcessUse(BaseModel):
    """A process with its children; cpu: cores since the measurement before, None at the first one;
    memory_bytes: resident, shared pages in each."""

    name: str
    pid: int
    cpu: float | None
    memory_bytes: int


class ProcessUsage:
    """Measures; what was measured less than LEAST_S ago is returned again."""

    def __init__(self, state: Path) -> None:
        self._lock, self._logs = state / "lock", (state / "logs").resolve()
        self._at, self._found = 0.0, list[ProcessUse]()
        self._seconds: dict[int, float] = {}  # of CPU, by session

    def read(self) -> list[ProcessUse]:
        """Return the processes by name; none where `up` does not run on this machine."""
        now = time.monotonic()
        if now - self._at < LEAST_S:
            return self._found
        names, seconds, memory = self._sum()
        self._found = [
            ProcessUse(
                name=names[pid],
                pid=pid,
                cpu=(seconds[pid] - self._seconds[pid]) / (now - self._at)
                if pid in self._seconds
                else None,
                memory_bytes=memory[pid],
            )
            for pid in sorted(names, key=lambda pid: names[pid])
        ]
        self._at, self._seconds = now, seconds
        return self._found

    def _sum(self) -> tuple[dict[int, str], dict[int, float], dict[int, int]]:
        """Return names, seconds of CPU and bytes of memory, by session."""
        try:
            up = self._lock.read_text().strip()
        except OSError:
            up = ""
        stats = dict(_stats()) if up else {}
        children = [pid for pid, stat in stats.items() if stat[PARENT] == up]
        names = {pid: name for pid in children if (name := self._name(pid))}
        seconds, memory = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
        tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        for stat in stats.values():
            if (session := int(stat[SESSION])) in names:
                seconds[session] += (int(stat[USER]) + int(stat[SYSTEM])) / tick
                memory[session] += int(stat[PAGES]) * page
        return names, seconds, memory

    def _name(self, pid: int) -> str:
        """Return "" for a process that writes elsewhere: it is none of the folder's."""
        try:
            output = (PROC / str(pid) / "fd" / "1").readlink()
        except OSError:
            return ""
        return output.name.partition(".log")[0] if output.parent == self._logs else ""


def _stats() -> Iterator[tuple[int, list[str]]]:
    for folder in PROC.glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text()
        except OSError:
            continue  # it has ended
        yield int(folder.name), text.rpartition(")")[2].split()
