"""What one worker process is told."""

from dataclasses import dataclass
from pathlib import Path

from streams.contract.bus import BrokerSettings


@dataclass(frozen=True)
class WorkerSettings:
    """Read once where the process starts.

    task: the task's reference; store: the folder of the Delta tables; teacher: an artifact of kind
    "teacher"; trusted: files of the public keys that may have signed it; instance: this worker's
    stable name in its group; partitions: of `events`, as the topic is created.
    """

    task: str
    broker: BrokerSettings
    store: Path
    teacher: Path
    trusted: tuple[Path, ...]
    instance: str = "worker-0"
    partitions: int = 4
    flush_s: float = 0.3
    buffer_bytes: int = 512_000_000
