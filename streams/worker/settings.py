"""Settings of a worker process, and its name in its group.

A name is unique among the workers that run, and the same after a restart.
Workers that share a store hold a lock file each, `workers/<name>.lock` beside the store, for as
long as they live. Two of one name would fence each other off (Kafka's static membership).

`torch_device` is the processor that a teacher's forward passes run on: the CPU, or a CUDA device.
"""

import fcntl
import logging
import os
import re
import socket
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Annotated

from streams.contract.errors import UsageError
from streams.contract.events.records import ScoresForm
from streams.kafka.settings import BrokerSettings
from streams.runtime import option
from streams.runtime.health import HOST
from streams.worker.store.tables import Place, beside

MAX_THREADS = 4
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

log = logging.getLogger(__name__)


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
    buffer_bytes: limit of unacknowledged messages; upkeep_every: files that a partition's commits
    add between two runs of maintenance; metrics_port: on loopback, 0 for a free one.
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
    device: str = "cpu"
    buffer_bytes: int = 512_000_000
    upkeep_every: int = 256
    keep_days: Annotated[
        float | None,
        option("Delete rows of the store whose windows are older by event time; default: never.",
               ge=1),
    ] = None  # fmt: skip
    scores: Annotated[
        ScoresForm,
        option("The form of messages on `scores`: an Arrow stream, or JSON for readers without "
               "Arrow."),
    ] = "arrow"  # fmt: skip
    metrics_port: int | None = None
    metrics_host: str = HOST
    workers: Path | None = None

    @property
    def folder(self) -> Path:
        """The worker's own folder."""
        workers = self.workers or beside(self.store, Path(".tidewheel"))
        return workers / self.instance


def hold(workers: Path, asked: str | None = None) -> tuple[str, IO[str]]:
    """Return the name and its lock, held while the handle is open: `asked`, otherwise the first of
    `<host>-1`, `<host>-2`, … that is free. Raise UsageError if a running worker has the name."""
    if asked is not None:
        if not NAME.fullmatch(asked):
            raise UsageError(f"--instance {asked}: letters, digits, '.', '_' and '-', at most 63")
        handle = _lock(workers, asked)
        if handle is None:
            raise UsageError(
                f"a worker named {asked} is running beside {workers}: stop it, or give this one "
                "another --instance"
            )
        return asked, handle
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:50].strip("-") or "worker"
    tried = ((name, _lock(workers, name)) for name in (f"{host}-{n}" for n in count(1)))
    return next((name, handle) for name, handle in tried if handle is not None)


def _lock(workers: Path, name: str) -> IO[str] | None:
    try:
        workers.mkdir(parents=True, exist_ok=True)
        handle = (workers / f"{name}.lock").open("a")
    except OSError as exc:
        raise UsageError(f"{workers} cannot be written: {exc}: use another --store") from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    except OSError as exc:  # a file system without locks, as some that are mounted from elsewhere
        log.warning("%s cannot be locked (%s): give every worker its own --instance", workers, exc)
    return handle


CPU, CUDA, AUTO = "cpu", "cuda", "auto"


def torch_device(asked: str, option: str) -> str:
    """Return "cpu" or "cuda" for what `option` was set to: "auto" is CUDA where torch finds a
    device, else the CPU.

    Raises UsageError for another word, and for "cuda" where torch finds no device. torch is
    imported only where it has to be asked.
    """
    if asked == CPU:
        return CPU
    if asked not in (AUTO, CUDA):
        raise UsageError(f"{option} {asked}: write auto, cpu or cuda")
    import torch

    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False  # convolutions in float32, as on the CPU
        return CUDA
    if asked == AUTO:
        return CPU
    built = "built without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
    raise UsageError(
        f"{option} cuda: torch {torch.__version__} ({built}) finds no CUDA device: see that "
        "nvidia-smi lists one and install a build of torch for it, or use cpu or auto"
    )
