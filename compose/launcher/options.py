"""What `tidewheel up` is asked for."""

from dataclasses import dataclass
from pathlib import Path

DEVICES = 6
START_SPEED = 30.0


@dataclass(frozen=True)
class UpOptions:
    """`devices` None: DEVICES of the task's fleet, or all of fewer. `speed` paces the replay (1 is
    real time); None: START_SPEED, and slower where the machine is busy. It ends after `minutes`, or
    once the loop has closed when `until_closed`, failing after `timeout_s`; with neither, at
    Ctrl-C."""

    task_ref: str
    devices: int | None
    state: Path
    kafka: str | None = None
    speed: float | None = None
    workers: int = 1
    partitions: int = 4
    replication: int | None = None
    rounds: int | None = None
    strategy: str | None = None
    stages: str = "0.5,1"
    secure: bool = False
    minutes: float | None = None
    until_closed: bool = False
    timeout_s: float = 600.0
    json: bool = False
    console: bool = True
    jobs: bool = False

    @property
    def first_speed(self) -> float:
        """The speed of the replay at the start."""
        return START_SPEED if self.speed is None else self.speed
