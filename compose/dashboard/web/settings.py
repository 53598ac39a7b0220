"""What the console is asked for."""

import ipaddress
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compose.reports.jobs import FoundJobs, read_jobs
from streams.kafka.settings import BrokerSettings

JOBS = 100  # that are shown, the newest


@dataclass(frozen=True)
class ConsoleSettings:
    """port 0: a free one. jobs: folders of batch jobs beside those that the state folder knows.
    reference, options, kafka: the task and the options of the commands that pages show."""

    broker: BrokerSettings
    state: Path
    reference: str
    options: Sequence[str] = ()
    kafka: str | None = None
    host: str = "127.0.0.1"
    port: int = 8750
    jobs: Sequence[Path] = field(default_factory=tuple)

    def read_jobs(self) -> FoundJobs:
        return read_jobs(self.state, self.jobs, JOBS)

    def command(self, name: str, *words: str, topics: bool = False) -> str:
        """Return a command of `tidewheel` for the same task, to be copied; topics: it needs the
        broker."""
        broker = ["--kafka", self.kafka] if topics and self.kafka else []
        given = [self.reference, *words, *self.options, *broker]
        return f"tidewheel {name} {shlex.join(given)}"

    @property
    def public(self) -> bool:
        """Whether other machines may reach it."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True
