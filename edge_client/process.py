"""The agent's process: signals, memory, metrics, and what a failed thread does.

Memory that only the start needed is given back. A start touches most of the libraries' files once:
relocations, tables of operators and functions, initializers. Linux counts these pages as resident
as long as they are mapped, although an agent that answers uses a quarter of them.
"""

import contextlib
import ctypes
import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from edge_client.agent import Agent
from edge_client.control.ending import end_process, show_threads
from edge_client.settings import EdgeSettings
from streams.contract.documents import DeviceState
from streams.contract.task import load_task
from streams.runtime.failpoints import read_failpoint
from streams.runtime.interrupts import by_thread
from streams.runtime.tracing import open_tracing

M_ARENA_MAX = -8  # malloc.h
MADV_DONTNEED = 4  # mman.h

SMAPS = Path("/proc/self/smaps")

log = logging.getLogger("tidewheel.edge")


def spare_memory() -> None:
    """glibc makes a heap for each thread."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def give_back() -> None:
    """Give the kernel the pages of files that were only read so far; one that is needed again comes
    from the page cache.

    Nothing is done beside other threads: one that loads a library would lose what it has written
    there since the pages were found to be unwritten.
    """
    if threading.active_count() > 1:
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library, another kernel
        library = ctypes.CDLL(None)
        library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for begin, end in unwritten(SMAPS.read_text().splitlines()):
            library.madvise(begin, end - begin, MADV_DONTNEED)


def unwritten(smaps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each private mapping of a file that is readable only and has no page
    of its own, in memory or swapped out, from the lines of /proc/PID/smaps."""
    place: tuple[int, int] | None = None
    for line in smaps:
        words = line.split()
        if not words[0].endswith(":"):  # the first line of a mapping
            if place is not None:
                yield place
            begin, _, end = words[0].partition("-")
            kept = words[1] in ("r--p", "r-xp") and words[4] != "0"
            place = (int(begin, 16), int(end, 16)) if kept else None
        elif words[0] in ("Anonymous:", "Swap:") and words[1] != "0":
            place = None
    if place is not None:
        yield place


def _end_process(failed: threading.ExceptHookArgs) -> None:
    """End the process when a thread fails."""
    name = failed.thread.name if failed.thread else "a thread"
    end_process(log, f"{name} failed: {failed.exc_value}", failed.exc_value)


def run(settings: EdgeSettings) -> DeviceState:
    """The process: one device until SIGTERM or SIGINT; its last state."""
    spare_memory()
    task = load_task(settings.task_ref)
    tracing = open_tracing(os.environ, "tidewheel-edge", settings.device, task.name)
    agent = Agent(settings, task, read_failpoint(os.environ), tracing)
    give_back()
    threading.excepthook = _end_process
    signal.signal(signal.SIGUSR1, lambda *_: show_threads())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, by_thread(agent.stop))
    if settings.metrics_port is not None:
        _serve_metrics(agent, settings)
    agent.run()
    tracing.close()
    return agent.state()


def _serve_metrics(agent: Agent, settings: EdgeSettings) -> None:
    """Until the process ends."""
    from edge_client.metrics import DeviceMetrics
    from streams.runtime.health import serve

    assert settings.metrics_port is not None
    source = DeviceMetrics(agent, agent.spool.folder, settings.spool.total_bytes)
    server = serve(source, settings.metrics_port, settings.metrics_host)
    log.info("%s: metrics on %s:%d", settings.device, settings.metrics_host, server.port)
