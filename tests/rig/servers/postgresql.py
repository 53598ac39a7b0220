"""A real PostgreSQL from Debian's packages, which a test may stop and start."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from compose.launcher.broker import free_ports

MISSING = "needs PostgreSQL: make .venv/postgresql, or apt-get install postgresql"


def programs() -> Path:
    """Its folder of programs; without one the test is skipped."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if found:
        return found[-1]
    named = shutil.which("initdb")
    return Path(named).parent if named else pytest.skip(MISSING)


@dataclass(frozen=True)
class Server:
    """A server of our own; `uri` is its empty database."""

    folder: Path
    port: int

    @property
    def uri(self) -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", "data", "-o", options, "-l", "log", "-w", "start")

    def stop(self) -> None:
        """As a crash does it: no connection is waited for."""
        self._run("pg_ctl", "-D", "data", "-m", "immediate", "stop")

    def create(self) -> None:
        self._run("initdb", "-D", "data", "-A", "trust", "-U", "tester")

    def _run(self, name: str, *words: str) -> None:
        command = [str(programs() / name), *words]
        user = "postgres" if os.geteuid() == 0 else None  # it does not run as root
        done = subprocess.run(
            command, cwd=self.folder, user=user, group=user, extra_groups=[] if user else None,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@contextmanager
def postgresql() -> Iterator[Server]:
    """A server that has been started."""
    programs()
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        server = Server(folder, port)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
