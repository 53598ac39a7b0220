"""A device's agent as a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from streams.contract.task import Task, load_task
from streams.runtime.trust import create_key
from tests.compose.cli.test_cli import port_without_listener
from tests.rig.made_up.models import TINY, artifact, plain
from tests.rig.processes.running import start


def first_model(state: Path, task: Task | None = None) -> Path:
    """Write a first version into the state folder, signed by its key."""
    path = state / "model.twa"
    if not path.exists():
        key = create_key(state / "keys" / "signing.pem")
        path.write_bytes(artifact(key, plain(1), task=task or load_task(TINY)))
    return path


class AgentProcess:
    """`tidewheel edge run` of device d0 with some more words; without `kafka` no broker is in
    reach. Its standard input is a pipe, and its log a file of the state folder."""

    def __init__(
        self,
        state: Path,
        *words: str | Path,
        reference: str = TINY,
        kafka: str = "",
        program: tuple[str, ...] = ("-m", "compose.cli.main"),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.path = state / "devices" / "d0", state / "agent.log"
        command = [sys.executable, *program, "edge", "run", reference, "--device", "d0"]
        command += ["--state", str(state), *map(str, words)]
        command += ["--kafka", kafka or f"127.0.0.1:{port_without_listener()}"]
        env = {**os.environ, **(environ or {})}
        self.process = start(command, self.path, env, stdin=subprocess.PIPE, session=False)

    @property
    def log(self) -> str:
        """What all agents on this state folder have said."""
        return self.path.read_text()

    def check(self) -> None:
        assert self.process.poll() is None, self.log[-3000:]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to an agent that is alive; the code with which it ends."""
        self.check()
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.close()
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
