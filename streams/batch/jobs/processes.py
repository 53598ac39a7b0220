"""Step 4 of a job's shards: in this process, or in several, one shard each at a time, or on Ray.

A worker is `python -m streams.batch.jobs.worker`. It reads the numbers of shards from its standard
input and answers each with a line of JSON on its standard output. It is killed with this process
(Linux), and ends by itself when its input ends. One that dies costs its shard's attempt.
"""

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from streams.batch.history.topic import Broker
from streams.batch.jobs.job_folder import JobFolder
from streams.batch.jobs.scoring import ShardScorer
from streams.batch.jobs.worker import answered
from streams.batch.records.documents import Plan, Specification
from streams.batch.records.progress import Counts
from streams.batch.sinks.part_files import part_path
from streams.batch.sources.plan import Sources
from streams.contract.errors import TidewheelError
from streams.contract.task import Task
from streams.drift.reference import Reference

DEATHS = 3  # of one shard in a row: the fourth process would die too
POLL_S = 0.2
ROWS_A_PROCESS = 20_000  # fewer are done before another process has started

Before = Callable[[int], None]
Scored = tuple[int, Counts, float]


def useful_processes(rows: int) -> int:
    """Return how many processes are worth their start."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, min(cores, rows // ROWS_A_PROCESS))


class Pool(Protocol):
    """Where shards are scored at once, each apart from this process."""

    @property
    def free(self) -> bool:
        """Whether another shard can be begun."""
        ...

    @property
    def busy(self) -> bool:
        """Whether shards have begun that no answer has come for."""
        ...

    def begin(self, number: int) -> None: ...

    def answers(self) -> Iterator[Scored | int]:
        """Wait for a moment; yield what has been scored, and the shards of processes that have
        died."""
        ...

    def close(self) -> None:
        """End all processes."""
        ...


class Scorers:
    """What scores the shards of one job. A context manager, at whose end all processes are gone."""

    def __init__(
        self,
        folder: JobFolder,
        specification: Specification,
        task: Task,
        processes: int | None,
        max_bytes: int,
        between: Callable[[], None],
        lock: int | None = None,
        broker: Broker | None = None,
        ray: str | None = None,
    ) -> None:
        """Load the model in this process, which is the test of whether it can be used. The other
        ones inherit `lock`, so that the folder is held until all of them are gone."""
        self._folder, self._specification = folder, specification
        self._max_bytes, self._between, self._processes = max_bytes, between, processes
        self._lock = () if lock is None else (lock,)
        self._own = ShardScorer(folder, specification, task, max_bytes, broker)
        self._ray = ray
        self._pool: Pool | None = None
        self._environ = dict(os.environ)
        if specification.topic is not None and broker is not None:
            self._environ["TIDEWHEEL_KAFKA"] = broker().bootstrap

    @property
    def reference(self) -> Reference | None:
        """What the rows are compared with."""
        return self._own.reference

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._pool is not None:
            self._pool.close()

    def begin(self, rows: int) -> None:
        """Start the processes if about so many rows are worth it: they load while the input is
        hashed."""
        count = self._processes or useful_processes(rows)
        if self._ray is None and 1 < count <= rows // ROWS_A_PROCESS:
            self._pool = self._opened(count)

    def score(
        self, plan: Plan, sources: Sources, numbers: Sequence[int], before: Before
    ) -> Iterator[Scored]:
        """Yield each shard as it is scored; `before` is called before it is begun. What that raises
        is raised when all shards that have begun are done."""
        rows = sum(plan.shards[number].rows for number in numbers)
        count = min(self._processes or useful_processes(rows), len(numbers))
        if self._pool is None and numbers and (self._ray is not None or count > 1):
            self._pool = self._opened(count)
        if self._pool is not None:
            yield from self._in_pool(self._pool, list(numbers), before)
            return
        for number in numbers:
            before(number)
            begun = time.monotonic()
            part = part_path(self._folder.folder, self._specification, plan, number)
            counts = self._own.score(plan, number, sources, part, self._between)
            yield number, counts, time.monotonic() - begun

    def _opened(self, count: int) -> Pool:
        folder = self._folder.folder
        if self._ray is None:
            return _Processes(count, folder, self._max_bytes, self._environ, self._lock)
        from streams.batch.jobs.ray_tasks import RayPool

        return RayPool(self._ray, folder, self._max_bytes, self._environ, self._processes)

    def _in_pool(self, pool: Pool, waiting: list[int], before: Before) -> Iterator[Scored]:
        over: BaseException | None = None
        deaths: dict[int, int] = {}
        waiting.reverse()
        while True:
            while pool.free and waiting and over is None:
                try:
                    before(waiting[-1])
                    pool.begin(waiting.pop())
                except Exception as exc:  # a stop, or the disk: the others are waited for
                    over = exc
            if not pool.busy:
                if over is not None:
                    raise over
                return
            for found in pool.answers():
                if isinstance(found, int):  # its process is dead
                    deaths[found] = deaths.get(found, 0) + 1
                    if deaths[found] == DEATHS:
                        raise TidewheelError(
                            f"{DEATHS} processes have died of shard {found}: see jobs logs"
                        )
                    self._folder.note(f"shard {found}: its process has died, it is begun again")
                    waiting.append(found)
                    continue
                yield found
            self._between()


class _Processes:
    """Processes of this machine; what is given after `count` is each one's."""

    def __init__(
        self,
        count: int,
        folder: Path,
        max_bytes: int,
        environ: Mapping[str, str],
        lock: tuple[int, ...],
    ) -> None:
        self._given = folder, max_bytes, environ, lock
        self._workers = [_Worker(*self._given) for _ in range(count)]

    @property
    def free(self) -> bool:
        return any(worker.number is None for worker in self._workers)

    @property
    def busy(self) -> bool:
        return any(worker.number is not None for worker in self._workers)

    def begin(self, number: int) -> None:
        next(worker for worker in self._workers if worker.number is None).begin(number)

    def answers(self) -> Iterator[Scored | int]:
        with selectors.DefaultSelector() as ready:
            for worker in self._workers:
                if worker.number is not None:
                    ready.register(worker.output, selectors.EVENT_READ, worker)
            events = ready.select(POLL_S)
        for worker in [key.data for key, _ in events]:
            number, line = worker.number, worker.output.readline()
            assert number is not None
            if not line:
                worker.kill()
                self._workers[self._workers.index(worker)] = _Worker(*self._given)
                yield number
                continue
            worker.number = None
            yield number, *answered(json.loads(line))

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()


class _Worker:
    """A process that scores one shard after the other."""

    def __init__(
        self, folder: Path, max_bytes: int, environ: Mapping[str, str], lock: tuple[int, ...]
    ) -> None:
        self.number: int | None = None
        command = [sys.executable, "-m", "streams.batch.jobs.worker", str(folder)]
        self._process = subprocess.Popen(
            [*command, str(max_bytes), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environ),
            start_new_session=True,  # Ctrl-C is ours to handle
            pass_fds=lock,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self.output = self._process.stdin, self._process.stdout

    def begin(self, number: int) -> None:
        self.number = number
        with suppress(BrokenPipeError):  # it is dead: its output has ended
            self._input.write(f"{number}\n".encode())
            self._input.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._input, self.output):
            with suppress(BrokenPipeError):
                pipe.close()
