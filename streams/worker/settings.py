"""What one worker process is told."""

from dataclasses import dataclass
from pathlib import Path

from streams.contract.bus import BrokerSettings


@dataclass(frozen=True)
class WorkerSettings:
    """Read once where the process starts.

    task: the task's reference; store: the folder of the Delta tables; trusted: files of the public
    keys that may have signed a teacher; teacher: an artifact of kind "teacher" that is used
    whatever the server offers; fallback: one that is used until the server offers another, if the
    file is there; instance: this worker's stable name in its group; partitions: of `events`, as the
    topic is created; threads: of one forward pass; buffer_bytes: of messages that are not
    acknowledged; upkeep_every: commits of a partition; metrics_port: on loopback, 0 for a free one.
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
    threads: int = 1
    buffer_bytes: int = 512_000_000
    upkeep_every: int = 256
    metrics_port: int | None = None
