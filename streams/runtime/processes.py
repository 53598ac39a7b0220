"""Processes by their identity, which no later process has: number, time of start, machine, boot,
namespace.

Linux tells all of it. Elsewhere nobody can say whether a process of another program lives.
"""

import ctypes
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

PR_SET_PDEATHSIG = 1
STARTED = 19  # of the fields behind the name in /proc/<pid>/stat: the start in ticks since boot


@dataclass(frozen=True)
class Process:
    """A process. `boot` and `namespace` say where its number means anything; `machine` whose boot
    that is, "" where that is unknown."""

    pid: int
    started: int
    machine: str
    boot: str
    namespace: str

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def decode(text: str) -> "Process":
        return Process(**json.loads(text))


@cache
def boot() -> str:
    """Return what names the time since the machine was started."""
    return _text(Path("/proc/sys/kernel/random/boot_id"))


@cache
def machine() -> str:
    """Return the machine's id, "" if it has none."""
    return _text(Path("/etc/machine-id"))


def this_process() -> Process:
    here = machine(), boot(), _namespace()
    return Process(os.getpid(), _started(os.getpid()) or 0, *here)


def elsewhere(process: Process) -> bool:
    """Return whether a process is known to be of another machine, which shares no clock."""
    return bool(process.machine and machine()) and process.machine != machine()


def alive(process: Process) -> bool | None:
    """Return whether a process lives; None: it cannot be told from here."""
    if elsewhere(process):
        return None
    if process.boot != boot():
        return False
    if not process.boot or process.namespace != _namespace():
        return None
    return _started(process.pid) == process.started


def end(process: Process) -> bool:
    """Kill a process, also one that is stopped; return whether it could be: another user's and
    another container's cannot. It may take a moment to be gone."""
    if alive(process) is not True:
        return alive(process) is False
    with suppress(ProcessLookupError):
        try:
            handle = os.pidfd_open(process.pid)
        except PermissionError:
            return False
        try:
            if alive(process):  # the number is still its own
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except PermissionError:
            return False
        finally:
            os.close(handle)
    return True


def end_with_parent(parent: int) -> bool:
    """Let this process be killed when its parent ends (Linux); return False if that has ended."""
    if sys.platform != "linux":
        return True
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def _started(pid: int) -> int | None:
    """Return when a process started; None for one that is gone or a zombie."""
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return int(fields[STARTED]) if fields and fields[0] not in "ZX" else None


@cache
def _namespace() -> str:
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
