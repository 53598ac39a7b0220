"""Servers that tests talk to, as processes of their own on the loopback address."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PYTHON = Path(__file__).parents[3] / ".venv" / "servers" / "bin" / "python"
START_S = 60.0


def servers_python() -> str:
    """A Python that has them: TIDEWHEEL_SERVERS_PYTHON, or the one that `make test` makes."""
    named = os.environ.get("TIDEWHEEL_SERVERS_PYTHON")
    if named is None and not PYTHON.exists():
        pytest.skip("needs servers: make .venv/servers/installed, or TIDEWHEEL_SERVERS_PYTHON")
    return named or str(PYTHON)


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of an S3 API that keeps its buckets in memory."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [servers_python(), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None, "the S3 server has ended"
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
