"""Step 4 of a job's shards as Ray tasks, one shard each: for more than one machine.

The nodes have Tidewheel installed and share the file system of the job's folder, of its output and
of its input. A task whose worker or node dies costs its shard's attempt, as a process that dies
does (processes.py); Ray itself repeats none. The only module that imports Ray.
"""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streams.batch.jobs.worker import Answer, ShardAnswers, answered
from streams.batch.records.progress import Counts
from streams.contract.errors import TidewheelError, UsageError

LOCAL = "local"
WAIT_S, REACH_S = 0.2, 5.0

_workers: dict[str, ShardAnswers] = {}  # of this process of Ray, by the job's folder


def score_shard(folder: str, number: int, max_bytes: int, environ: dict[str, str]) -> Answer:
    """Score a shard in a process of Ray, which keeps the job's model for the next one."""
    os.environ.update(environ)
    if folder not in _workers:
        _workers.clear()
        _workers[folder] = ShardAnswers(Path(folder), max_bytes)
    return _workers[folder].answer(number)


class RayPool:
    """The processors of a Ray cluster."""

    def __init__(
        self,
        address: str,
        folder: Path,
        max_bytes: int,
        environ: Mapping[str, str],
        processes: int | None,
    ) -> None:
        """Join the cluster at `address`, or start one here; raise UsageError if that fails."""
        try:
            import ray as untyped
        except ImportError as exc:
            raise UsageError("--ray needs Ray: pip install 'tidewheel[ray]'") from exc
        ray: Any = untyped
        self._ray = ray
        self._ours = not ray.is_initialized()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        where: dict[str, Any] = {"address": address}
        if address == LOCAL:
            where = {"num_cpus": processes, "include_dashboard": False}
        try:
            _refuse_silence(address)
            if self._ours:
                ray.init(**where, log_to_driver=False)
        except (OSError, RuntimeError, ValueError) as exc:
            raise UsageError(f"--ray {address}: {_line(exc)}") from exc
        self._stdout = sys.stdout
        sys.stdout = sys.stderr  # where Ray says what has died
        self._slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._task = ray.remote(num_cpus=1, max_retries=0)(score_shard)
        self._given = (str(folder), max_bytes, _kafka(environ))
        self._pending: dict[Any, int] = {}

    @property
    def free(self) -> bool:
        return len(self._pending) < self._slots

    @property
    def busy(self) -> bool:
        return bool(self._pending)

    def begin(self, number: int) -> None:
        folder, max_bytes, environ = self._given
        self._pending[self._task.remote(folder, number, max_bytes, environ)] = number

    def answers(self) -> Iterator[tuple[int, Counts, float] | int]:
        """Yield what has been scored, and the shards whose worker or node has died."""
        ready, _ = self._ray.wait(list(self._pending), timeout=WAIT_S)
        for reference in ready:
            number = self._pending.pop(reference)
            try:
                found = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as exc:
                raise TidewheelError(f"shard {number} on Ray: {_line(exc.cause or exc)}") from exc
            except self._ray.exceptions.RayError:
                yield number
                continue
            yield number, *answered(found)

    def close(self) -> None:
        for reference in self._pending:
            self._ray.cancel(reference, force=True)
        if self._ours:
            self._ray.shutdown()
        sys.stdout = self._stdout


def _refuse_silence(address: str) -> None:
    """Raise OSError if nothing answers at HOST:PORT: Ray itself would wait for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), REACH_S).close()


def _kafka(environ: Mapping[str, str]) -> dict[str, str]:
    return {n: v for n, v in environ.items() if n.startswith("TIDEWHEEL_KAFKA")}


def _line(exc: BaseException) -> str:
    return str(exc).strip().splitlines()[0][:300] if str(exc).strip() else type(exc).__name__
