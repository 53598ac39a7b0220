"""SuperLink and SuperExec under `up`: 220 MB that are there while the controller wants them.

    <state>/controller/superlink-wanted   made and removed by the controller (run_tracker)

The SuperLink keeps its runs, messages and nodes in a database, so it can end between two runs. It
goes some seconds after the file, because a ServerApp ends after its run has finished on `rounds`.
"""

import time
from dataclasses import dataclass

from compose.launcher import flower_processes
from compose.launcher.commands import Commands
from compose.launcher.supervisor import Supervisor
from compose.security.certificates import Tls


@dataclass
class Flower:
    """Call `look` all the time."""

    commands: Commands
    supervisor: Supervisor
    port: int
    tls: Tls | None = None
    linger_s: float = 15.0
    _wanted_at: float = 0.0

    @property
    def address(self) -> str:
        return f"{flower_processes.HOST}:{self.port}"

    def answers(self) -> bool:
        return flower_processes.is_ready(self.address, ca=self.commands.ca)

    def start_superlink(self) -> None:
        launch = flower_processes.superlink(self.commands.options.state, self.port, self.tls)
        self.supervisor.start("superlink", launch)
        self._wanted_at = time.monotonic()

    def look(self) -> None:
        """Start what is wanted and not there, one process a call; end what is not wanted."""
        own, running = self.commands, self.supervisor.children
        if (own.options.state / "controller" / "superlink-wanted").exists():
            self._wanted_at = time.monotonic()
            if "superlink" not in running:
                self.start_superlink()
            elif "superexec" not in running and self.answers():
                state, environment = own.options.state, own.environment
                launch = flower_processes.superexec(state, self.port, environment, own.ca)
                self.supervisor.start("superexec", launch)
        elif "superlink" in running and time.monotonic() - self._wanted_at > self.linger_s:
            self.supervisor.stop("superexec", "superlink")
