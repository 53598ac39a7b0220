"""The machine: what it is, and how much of it others use while something is measured."""

import contextlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.meter import TICKS_PER_S, sample

ROOT = Path(__file__).parents[2]
QUIET = 0.10  # of one core: what other processes may use


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


def busy_s() -> float:
    """CPU seconds that the machine has spent on anything, or had taken from it."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _wait, irq, soft, steal = fields
    return (user + nice + system + irq + soft + steal) / TICKS_PER_S


def _ours_s(broker: int | None) -> float:
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    kafka = sample(broker).cpu_s if broker is not None else 0.0
    return sum(one.ru_utime + one.ru_stime for one in own) + kafka


@contextlib.contextmanager
def watched(broker: int | None) -> Iterator[Load]:
    """How much others use meanwhile: all that was busy less this process, its children that have
    ended by then, and the broker."""
    load, began = Load(), time.monotonic()
    busy, ours = busy_s(), _ours_s(broker)
    yield load
    spent = (busy_s() - busy) - (_ours_s(broker) - ours)
    load.others = max(0.0, spent / (time.monotonic() - began))


def wait_until_quiet(broker: int | None, patience_s: float) -> float:
    """Wait until others use next to nothing, at most so long; the seconds that were waited."""
    began = time.monotonic()
    while True:
        with watched(broker) as load:
            time.sleep(1.0)
        if load.others < QUIET or time.monotonic() - began > patience_s:
            return time.monotonic() - began
