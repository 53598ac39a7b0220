"""What the console is asked for."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compose.reports.jobs import FoundJobs, read_jobs
from streams.kafka.settings import BrokerSettings

JOBS = 100  # that are shown, the newest


@dataclass(frozen=True)
class ConsoleSettings:
    """port 0: a free one. hosts: names by which the console may be asked for. jobs: folders of
    batch jobs beside those that the state folder knows. registry: of models, for actions; None: the
    state folder's."""

    broker: BrokerSettings
    state: Path
    host: str = "127.0.0.1"
    port: int = 8750
    hosts: Sequence[str] = ()
    allow_actions: bool = False
    jobs: Sequence[Path] = field(default_factory=tuple)
    registry: str | None = None

    def read_jobs(self) -> FoundJobs:
        return read_jobs(self.state, self.jobs, JOBS)

    @property
    def token_file(self) -> Path:
        return self.state / "console-token"

    @property
    def public(self) -> bool:
        """Whether other machines may reach it, so that reading needs the token too."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True
