"""A real MLflow server, from the virtualenv of the tests' servers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.rig.processes.running import serving
from tests.rig.servers.s3 import servers_python


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """The address of a server that keeps its runs in `folder`, without its eight processes for jobs
    of evaluation."""
    command = [servers_python(), "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health").text == "OK"
        except httpx.HTTPError:
            return False

    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with serving(command, folder / "log", answers, env, within_s=90.0, patience_s=0.0):
        yield f"http://127.0.0.1:{port}"
