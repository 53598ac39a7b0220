"""The agent's process: signals, memory, metrics, and what a failed or hanging thread does."""

import contextlib
import ctypes
import logging
import os
import signal
import threading
import time

from edge_client.agent import ANSWER, LOOK_S, Agent
from edge_client.settings import EdgeSettings
from streams.contract.documents import DeviceState
from streams.contract.task import load_task
from streams.runtime.failpoints import read_failpoint
from streams.runtime.process import by_thread, end_process, give_back, show_threads
from streams.runtime.tracing import open_tracing

M_ARENA_MAX = -8  # malloc.h

log = logging.getLogger("tidewheel.edge")


def spare_memory() -> None:
    """glibc makes a heap for each thread."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _end_process(failed: threading.ExceptHookArgs) -> None:
    """End the process when a thread fails."""
    name = failed.thread.name if failed.thread else "a thread"
    end_process(log, f"{name} failed: {failed.exc_value}", failed.exc_value)


def _watch(agent: Agent, device: str) -> None:
    """End the process when a thread does not come back. At the second look: in a process that was
    stopped none has had the time."""
    found = ""
    while True:
        time.sleep(LOOK_S)
        before, found = found, agent.hanging()
        if found and found == before:
            if found != ANSWER:
                agent.excuse()
            end_process(log, f"{device}: {found} does not come back")


def run(settings: EdgeSettings) -> DeviceState:
    """The process: one device until SIGTERM or SIGINT; its last state."""
    spare_memory()
    task = load_task(settings.task_ref)
    tracing = open_tracing(os.environ, "tidewheel-edge", settings.device, task.name)
    agent = Agent(settings, task, read_failpoint(os.environ), tracing)
    give_back()
    threading.excepthook = _end_process
    threading.Thread(
        target=_watch, args=(agent, settings.device), name="watch", daemon=True
    ).start()
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
