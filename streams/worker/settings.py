"""What one worker process is told."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from streams.kafka.settings import BrokerSettings

MAX_THREADS = 4


def default_threads() -> int:
    """The processors that this process may use, MAX_THREADS at the most."""
    may_use = getattr(os, "sched_getaffinity", None)  # Linux has it
    count = len(may_use(0)) if may_use else os.cpu_count() or 1
    return min(MAX_THREADS, count)


@dataclass(frozen=True)
class WorkerSettings:
    """Read once where the process starts.

    task: the task's reference; store: the folder of the Delta tables; trusted: files of the public
    keys that may have signed a teacher; teacher: an artifact of kind "teacher" that is used
    whatever the server offers; fallback: one that is used until the server offers another, if the
    file is there; instance: this worker's stable name in its group; partitions: of `events`, as the
    topic is created; threads: that score, each its own windows; buffer_bytes: of messages that are
    not acknowledged; upkeep_every: commits of a partition; metrics_port: on loopback, 0 for a free
    one.
    """

    task: str
    broker: BrokerSettings
    store: Path
    trusted: tuple[Path, ...]
    teacher: Path | None = None
    fallback: Path | None = None
    instance: str = "worker-0"
    partitions: int = 4
    flush_s: float = 0.3
    threads: int = field(default_factory=default_threads)
    buffer_bytes: int = 512_000_000
    upkeep_every: int = 256
    metrics_port: int | None = None
