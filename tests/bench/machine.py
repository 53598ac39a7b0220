"""The machine: what it is, and how much of it others use while something is measured."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.meter import TICKS_PER_S

ROOT = Path(__file__).parents[2]
QUIET = 0.10  # of one core: what other processes may use
PATIENCE_S = 60.0  # that a part waits for a quiet machine


def facts(command: str, kafka: str, packages: Sequence[str], *parts: str) -> dict[str, str]:
    """What a reader needs to judge the figures; `kafka` names the broker, "" where there is none,
    `parts` are the folders that are measured."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": _commit(parts),
        "machine": f"{os.cpu_count()} cores, {_processor()}, {memory_gb:.0f} GB, "
        f"{platform.system()} {platform.release()}" + ("; the broker shares it" if kafka else ""),
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *filter(None, [kafka]), versions]
        ),
    }


def _commit(parts: Sequence[str]) -> str:
    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", *parts)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (
        ", with changes" if changed else ""
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


@dataclass
class Load:
    """Cores used by others, on average over a stretch of time."""

    others: float = 0.0


def load_fact(highest: float, stretch: str = "a run") -> str:
    """Return what a page says of the highest of its loads, each an average over a `stretch`."""
    provisional = ": **provisional**" if highest > 2 * QUIET else ""
    return f"at most {highest:.0%} of a core, averaged over {stretch}{provisional}"


def busy_s() -> float:
    """CPU seconds that the machine has spent on anything, or had taken from it."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _wait, irq, soft, steal = fields
    return (user + nice + system + irq + soft + steal) / TICKS_PER_S


@dataclass(frozen=True)
class Process:
    """A running process: its parent, and CPU seconds, with those of children it waited for."""

    parent: int
    cpu_s: float


def processes() -> dict[int, Process]:
    """All processes that run now, by their ids."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            ticks = sum(int(x) for x in fields[11:15])
            found[int(path.parent.name)] = Process(int(fields[1]), ticks / TICKS_PER_S)
    return found


def ours_s(running: Mapping[int, Process], *roots: int) -> float:
    """CPU seconds of the roots and of all that descend from them, as far as they run or were waited
    for."""
    children = defaultdict(list)
    for pid, process in running.items():
        children[process.parent].append(pid)
    left, seen = list(roots), set[int]()
    while left:
        pid = left.pop()
        if pid not in seen:
            seen.add(pid)
            left += children[pid]
    return sum(running[pid].cpu_s for pid in seen if pid in running)


def _others_s(broker: int | None) -> float:
    roots = [os.getpid(), *([broker] if broker is not None else [])]
    return busy_s() - ours_s(processes(), *roots)


@contextlib.contextmanager
def watched(broker: int | None = None) -> Iterator[Load]:
    """How much others use meanwhile: all that was busy less this process, all that it started, and
    the broker, whether they end meanwhile or not."""
    load, began, others = Load(), time.monotonic(), _others_s(broker)
    yield load
    load.others = max(0.0, (_others_s(broker) - others) / (time.monotonic() - began))


def wait_until_quiet(broker: int | None, patience_s: float) -> float:
    """Wait until others use next to nothing, at most so long; the seconds that were waited."""
    began = time.monotonic()
    while True:
        with watched(broker) as load:
            time.sleep(1.0)
        if load.others < QUIET or time.monotonic() - began > patience_s:
            return time.monotonic() - began
