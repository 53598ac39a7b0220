"""Step 3 of `tidewheel up`: topics, and the processes of the fleet.

SuperLink and SuperExec take 220 MB; under `up` they are there while the controller wants them:

    <state>/controller/superlink-wanted   made and removed by the controller (run_tracker)

The SuperLink keeps its runs, messages and nodes in a database, so it can end between two runs. It
goes some seconds after the file, because a ServerApp ends after its run has finished on `rounds`.
"""

import contextlib
import importlib.util
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compose.launcher import broker, flower_processes
from compose.launcher.certificates import Tls
from compose.launcher.commands import Commands
from compose.launcher.node_registry import Nodes
from compose.launcher.state_dir import StateDir
from compose.launcher.supervisor import Supervisor
from edge_client.ipc import ask, socket_path
from streams.contract.errors import Retryable
from streams.contract.topics import topic_specs
from streams.contract.work import AgentRequest
from streams.kafka.admin import ensure_topics, probe

CONSOLE_PORT = 8750
WITHOUT = 'console   not started: pip install "tidewheel[console]"; or --no-console'


@dataclass
class Flower:
    """SuperLink and SuperExec. Call `look` all the time. environment: the broker's; always: also
    where no controller wants them."""

    state: Path
    environment: Mapping[str, str]
    supervisor: Supervisor
    port: int
    tls: Tls | None = None
    always: bool = False
    linger_s: float = 15.0
    _wanted_at: float = 0.0

    @property
    def address(self) -> str:
        return f"{flower_processes.HOST}:{self.port}"

    def answers(self) -> bool:
        return flower_processes.is_ready(self.address, ca=self.ca)

    @property
    def ca(self) -> Path | None:
        return None if self.tls is None else self.tls.ca

    def start_superlink(self) -> None:
        launch = flower_processes.superlink(self.state, self.port, self.tls)
        self.supervisor.start("superlink", launch)
        self._wanted_at = time.monotonic()

    def look(self) -> None:
        """Start what is wanted and not there, one process a call; end what is not wanted."""
        running = self.supervisor.children
        if self.always or (self.state / "controller" / "superlink-wanted").exists():
            self._wanted_at = time.monotonic()
            if "superlink" not in running:
                self.start_superlink()
            elif "superexec" not in running and self.answers():
                given = (self.state, self.port, self.environment, self.ca)
                self.supervisor.start("superexec", flower_processes.superexec(*given))
        elif "superlink" in running and time.monotonic() - self._wanted_at > self.linger_s:
            self.supervisor.stop("superexec", "superlink")


@dataclass(frozen=True)
class Fleet:
    """wait: for a condition, with a process's name and what is waited for. say: a line for the
    user."""

    commands: Commands
    layout: StateDir
    supervisor: Supervisor
    flower: Flower
    tls: Tls | None
    wait: Callable[[Callable[[], bool], str, str], None]
    say: Callable[[str], None]

    def start(self, devices: Sequence[str]) -> None:
        own, options, choice = self.commands, self.commands.options, self.commands.choice
        external = choice.kind == "external"
        if external:  # its topics have the copies that are asked for
            self.make_topics()
        for i in range(options.workers):  # which load much while the broker starts
            name = f"worker-{i}" if options.workers > 1 else "worker"
            self.supervisor.start(name, own.worker(name), stop_s=20.0)
        kafka = f"Kafka at {choice.settings.bootstrap}"
        self.wait(lambda: probe(choice.settings, 1.0), "broker", kafka)
        if not external:
            self.make_topics()
        if not options.no_console:
            self._start_console()
        keys = self._node_keys(devices)
        for device in devices:
            launch = own.edge(device, keys.get(device))
            self.supervisor.start(f"edge-{device}", launch, stop_s=25.0)
        self.supervisor.start("controller", own.controller(self.flower.port, len(devices)))

    def make_topics(self) -> None:
        """Create the topics that are missing."""
        specs = topic_specs(self.commands.task.id, self.commands.options.partitions)
        ensure_topics(self.commands.choice.settings, specs)

    def pace(self, devices: Sequence[str], speed: float) -> None:
        """Let the devices replay at another speed, also after a restart."""
        for device in devices:
            child = self.supervisor.children[f"edge-{device}"]
            argv = list(child.launch.argv)
            argv[argv.index("--speed") + 1] = str(speed)
            child.launch = replace(child.launch, argv=argv)
            with contextlib.suppress(Retryable):  # it is being started again
                ask(socket_path(self.layout.device(device)), AgentRequest(op="pace", speed=speed))

    def _start_console(self) -> None:
        """A console that does not stay up costs the page alone."""
        if importlib.util.find_spec("fastapi") is None:
            self.say(WITHOUT)
            return
        port = console_port()
        self.supervisor.start("console", self.commands.console(port), essential=False)
        self.say(f"console   http://{flower_processes.HOST}:{port}")

    def _node_keys(self, devices: Sequence[str]) -> dict[str, Path]:
        """The devices' private keys, registered; none where everybody is let in."""
        if self.tls is None:
            return {}
        self.flower.start_superlink()
        where = self.flower.address
        self.wait(self.flower.answers, "superlink", f"the SuperLink at {where}")
        flwr = flower_processes.flwr(self.commands.options.state, where, self.commands.ca)
        nodes = Nodes(self.layout.keys, flwr)
        nodes.add_all(devices)
        return {device: nodes.key(device) for device in devices}


def console_port() -> int:
    """The console's usual port, or a free one where that is taken."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((flower_processes.HOST, CONSOLE_PORT))
        except OSError:
            return broker.free_ports(1)[0]
    return CONSOLE_PORT
