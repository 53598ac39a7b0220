"""Wall time, CPU time and peak memory of one process: by itself, or from outside.

A contender prints its Measure as the last line of its output, so that whatever its libraries print
does no harm.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measure:
    """What one run of one contender took."""

    rows: int
    wall_s: float
    cpu_s: float
    peak_bytes: int

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.wall_s

    @property
    def cpu_s_per_million(self) -> float:
        return self.cpu_s / self.rows * 1e6

    @classmethod
    def together(cls, found: Sequence["Measure"]) -> Self:
        """What processes took that began at once: as long as the last of them."""
        return cls(
            sum(one.rows for one in found),
            max(one.wall_s for one in found),
            sum(one.cpu_s for one in found),
            sum(one.peak_bytes for one in found),
        )

    @classmethod
    def read(cls, output: str) -> Self:
        return cls(**json.loads(output.strip().splitlines()[-1]))


@dataclass(frozen=True)
class Sample:
    """A process as it stands: seconds of user and system time, peak and present memory."""

    cpu_s: float
    peak_bytes: int
    resident_bytes: int


def sample(pid: int) -> Sample:
    """Read from /proc; all threads, no children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return Sample(
        cpu_s=(int(fields[11]) + int(fields[12])) / TICKS_PER_S,
        peak_bytes=int(status["VmHWM"].split()[0]) * 1024,
        resident_bytes=int(status["VmRSS"].split()[0]) * 1024,
    )


class Meter:
    """The clock of a contender in its own process."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None
        self._ended = (0.0, 0.0)

    def begin(self) -> None:
        """The first message is there; later calls do nothing."""
        if self._began is None:
            self._began = time.monotonic(), time.process_time()

    def lap(self) -> None:
        """What has been done so far counts."""
        self._ended = time.monotonic(), time.process_time()

    def tell(self, rows: int) -> None:
        """Print the Measure up to the last lap."""
        if self._began is None:
            raise SystemExit("no message came")
        (wall, cpu), (began_wall, began_cpu) = self._ended, self._began
        peak = sample(os.getpid()).peak_bytes
        found: dict[str, Any] = asdict(Measure(rows, wall - began_wall, cpu - began_cpu, peak))
        print("\n" + json.dumps(found), flush=True)  # noqa: T201
