"""A real MLflow server, from the virtualenv of the tests' servers."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.rig.servers.s3 import servers_python

START_S = 90.0


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """The address of a server that keeps its runs in `folder`."""
    folder.mkdir(exist_ok=True)
    command = [servers_python(), "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    with (folder / "log").open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=folder, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").text == "OK":
                    break
            except httpx.HTTPError:
                assert server.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the MLflow server does not answer"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its workers, too
        server.wait()
