"""Processes that a benchmark starts, watches and ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from kafka import KafkaAdminClient

from streams.kafka.settings import BrokerSettings
from tests.rig.processes.running import ROOT as ROOT
from tests.rig.processes.running import start


class Failed(Exception):
    """A process ended or did not get on; the text has the end of its log."""


@dataclass(frozen=True)
class Usage:
    """A process now: CPU seconds, and bytes that are resident, proportional, at its peak."""

    cpu_s: float
    rss: int
    pss: int
    peak: int


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants; [] if it has ended."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def usage(pid: int) -> Usage:
    process = psutil.Process(pid)
    memory, cpu = process.memory_full_info(), process.cpu_times()
    return Usage(cpu.user + cpu.system, memory.rss, memory.pss, peak_bytes(pid))


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def tidewheel(*words: str) -> list[str]:
    """Return a command line of `tidewheel` in this Python."""
    return [sys.executable, "-m", "compose.cli.main", *words]


def until(
    what: str,
    condition: Callable[[], bool],
    within_s: float = 60.0,
    process: "subprocess.Popen[bytes] | None" = None,
    log: Path | None = None,
    pause_s: float = 0.05,
) -> None:
    """Wait until the condition holds; raise Failed at the deadline, or if the process has ended."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline or (process is not None and process.poll() is not None):
            end = log.read_text(errors="replace")[-1500:] if log is not None else ""
            raise Failed(f"not within {within_s:.0f} s: {what}; {end}")
        time.sleep(pause_s)


@contextmanager
def running(
    argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None, wait_s: float = 30.0
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in a group of its own, which is ended after the block."""
    process = start(argv, log, {**os.environ, **(env or {})})
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def module(
    name: str,
    *words: str,
    python: Path | None = None,
    env: Mapping[str, str] | None = None,
    within_s: float = 300.0,
) -> Any:
    """Run a module to its end; return the JSON of its last line."""
    done = subprocess.run(
        [str(python or sys.executable), "-m", name, *words], cwd=ROOT, capture_output=True,
        text=True, timeout=within_s, env={**os.environ, **(env or {})},
    )  # fmt: skip
    if done.returncode:
        raise Failed(f"{name}: {(done.stderr or done.stdout).strip()[-1500:]}")
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else None


def topic_bytes(settings: BrokerSettings) -> dict[tuple[str, int], int]:
    """Return the bytes that a broker stores, by topic and partition."""
    with closing(KafkaAdminClient(**settings.client_options())) as admin:
        return {
            (topic["name"], one["partition_index"]): one["partition_size"]
            for node in admin.describe_log_dirs()
            for folder in node["log_dirs"]
            for topic in folder["topics"]
            for one in topic["partitions"]
        }
