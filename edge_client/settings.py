"""What the device's agent is told when it starts."""

from dataclasses import dataclass
from pathlib import Path

from streams.contract.bus import BrokerSettings


@dataclass(frozen=True)
class EdgeSettings:
    """`folder` is the device's own; `model` an artifact file for a device that has none yet.

    `speed` paces a replay: 1 is real time, 0 as fast as it goes. `passes` ends it after so many
    rounds through the data. `drain_s` bounds the stop.
    """

    task_ref: str
    device: str
    folder: Path
    broker: BrokerSettings
    trusted: tuple[Path, ...]
    model: Path | None = None
    speed: float = 1.0
    passes: int | None = None
    drain_s: float = 10.0
    spool_bytes: int = 256 << 20
