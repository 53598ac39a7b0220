"""Servers that tests talk to, as processes of their own on the loopback address."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compose.launcher.broker import free_ports
from tests.rig.processes.running import serving

PYTHON = Path(__file__).parents[3] / ".venv" / "servers" / "bin" / "python"


def servers_python() -> str:
    """A Python that has them: TIDEWHEEL_SERVERS_PYTHON, or the one that `make test` makes."""
    named = os.environ.get("TIDEWHEEL_SERVERS_PYTHON")
    if named is None and not PYTHON.exists():
        pytest.skip("needs servers: make .venv/servers/installed, or TIDEWHEEL_SERVERS_PYTHON")
    return named or str(PYTHON)


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of an S3 API that keeps its buckets in memory."""
    [port] = free_ports(1)
    command = [servers_python(), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with serving(command, Path(os.devnull), lambda: listens(port), patience_s=0.0):
        yield f"http://127.0.0.1:{port}"


def listens(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0
