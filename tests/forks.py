"""Processes that are forked from one that has imported the worker and the command line once: torch,
Faust, Arrow and Delta take more than two seconds of a core each time. They are as real as others: a
process of their own with its signals, killed by SIGKILL; nothing runs in them before the fork but
imports."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from compose.cli.main import COMMANDS
from edge_client.training.trainer_client import Trainer

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "streams.worker.app",
        "compose.cli.main",
        *sorted({place.module for place in COMMANDS.values()}),
        "federation.bootstrap.initial_model",
        "duckdb",
    ]
)


class Forked:
    """What tests use of `subprocess.Popen`."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def fork(
    code: str,
    argv: Sequence[str],
    out: Path,
    cwd: Path,
    environ: Mapping[str, str],
    err: Path | None = None,
) -> Forked:
    """As `python -c CODE ARGV...` without input; the outputs are appended to `out`, and to `err`
    where it is given."""
    args = (code, list(argv), out, err or out, cwd, dict(environ))
    process = _CONTEXT.Process(target=_run, args=args)
    process.start()
    return Forked(process)


class ForkedTrainer(Trainer):
    """A trainer whose child is forked: torch is imported already."""

    def _start(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        process = _CONTEXT.Process(target=_train, args=(self._reference, theirs))
        process.start()
        return Forked(process)  # type: ignore[return-value]


def _train(reference: str, connection: socket.socket) -> None:
    from edge_client.training.trainer_process import main

    main(reference, connection.detach())


def _run(
    code: str, argv: list[str], out: Path, err: Path, cwd: Path, environ: dict[str, str]
) -> None:
    append = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, append), (2, err, append)):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.argv = ["-c", *argv]
    exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})  # the test's own text
