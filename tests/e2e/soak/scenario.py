"""What happens in a soak, by day of event time."""

from dataclasses import dataclass

STEP_H = 6  # of event time; also a window's length
EPOCH_US = 1_790_812_800_000_000  # 2026-10-01, where event time begins
DAY_US = 86_400_000_000
QUALITY = {1: 0.80, 2: 0.90, 3: 0.55, 4: 0.93}  # share of right answers by a version's number


@dataclass(frozen=True)
class Scenario:
    """every_s: between two events of a device. keep: days that topics keep messages, and the store
    rows. first, bad, second: versions 2, 3 and 4 are offered; kill_worker, kill_controller: SIGKILL
    and a new one; away: no worker from the first day to before the second; teacher: another one is
    offered. A device is offline, wrong about the time, or restarted with these chances a day."""

    devices: int = 1000
    days: int = 30
    every_s: int = 1200
    keep: int = 5
    first: int = 1
    kill_worker: int = 3
    away: tuple[int, int] = (4, 11)
    kill_controller: int = 12
    bad: int = 13
    teacher: int = 17
    second: int = 20
    offline: float = 0.03
    wrong_clock: float = 0.02
    restart: float = 0.05

    @property
    def warm(self) -> int:
        """The day from which on memory is compared: all processes have worked for some time."""
        return self.teacher


SHORT = Scenario(
    devices=24, days=14, every_s=300, keep=2, first=0, kill_worker=2, away=(3, 7),
    kill_controller=7, bad=8, teacher=9, second=10, offline=0.05, wrong_clock=0.05, restart=0.1,
)  # fmt: skip
