"""Settings of a worker process."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from streams.kafka.settings import BrokerSettings
from streams.learning.torch_device import CPU
from streams.runtime.health import HOST
from streams.worker.store.place import Place, beside

MAX_THREADS = 4


def default_threads() -> int:
    """Return the number of processors that this process may use, at most MAX_THREADS."""
    may_use = getattr(os, "sched_getaffinity", None)  # Linux only
    count = len(may_use(0)) if may_use else os.cpu_count() or 1
    return min(MAX_THREADS, count)


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of a worker, read once at its start.

    task: the task's reference; store: where the Delta tables are; workers: a folder of this machine
    for what a worker keeps beside them, default: beside the store; trusted: public key files that
    teachers may be signed with; teacher: an artifact of kind "teacher" that overrides the
    server's offers; fallback: one that is used until the server's first offer, if the file exists;
    instance: the worker's stable name in its group; partitions: of `events`, if it
    is created; threads: for scoring; device: of the teacher's forward passes, "cpu" or "cuda";
    buffer_bytes: limit of unacknowledged messages; upkeep_every: commits of a partition between two
    runs of maintenance; keep_days: of event time, after which rows are deleted, None for never;
    metrics_port: on loopback, 0 for a free one.
    """

    task: str
    broker: BrokerSettings
    store: Place
    trusted: tuple[Path, ...]
    teacher: Path | None = None
    fallback: Path | None = None
    instance: str = "worker-0"
    partitions: int = 4
    flush_s: float = 1.0
    threads: int = field(default_factory=default_threads)
    device: str = CPU
    buffer_bytes: int = 512_000_000
    upkeep_every: int = 256
    keep_days: float | None = None
    metrics_port: int | None = None
    metrics_host: str = HOST
    workers: Path | None = None

    @property
    def folder(self) -> Path:
        """The worker's own folder."""
        workers = self.workers or beside(self.store, Path(".tidewheel"))
        return workers / self.instance
