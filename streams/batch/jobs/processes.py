"""Step 4 of a job's shards: in this process, or in several, one shard each at a time.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from streams.batch.jobs.job_folder import JobFolder
from streams.batch.jobs.scoring import ShardScorer
from streams.batch.records.documents import Counts, Plan, Specification
from streams.batch.sinks.part_files import part_path
from streams.batch.sources.plan import Sources
from streams.contract.errors import Retryable, TidewheelError, UsageError
from streams.contract.task import Task
from streams.drift.reference import Reference

DEATHS = 3  # of one shard in a row: the fourth process would die too
POLL_S = 0.2
ROWS_A_PROCESS = 20_000  # fewer are done before another process has started

KINDS = {"usage": UsageError, "passing": Retryable, "other": TidewheelError}  # of an error
Before = Callable[[int], None]
Scored = tuple[int, Counts, float]


def useful_processes(rows: int) -> int:
    """Return how many processes are worth their start."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, min(cores, rows // ROWS_A_PROCESS))


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
    ) -> None:
        """Load the model in this process, which is the test of whether it can be used. The other
        ones inherit `lock`, so that the folder is held until all of them are gone."""
        self._folder, self._specification = folder, specification
        self._max_bytes, self._between, self._processes = max_bytes, between, processes
        self._lock = () if lock is None else (lock,)
        self._own = ShardScorer(folder, specification, task, max_bytes)
        self._workers: list[_Worker] = []

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
        for worker in self._workers:
            worker.kill()

    def score(
        self, plan: Plan, sources: Sources, numbers: Sequence[int], before: Before
    ) -> Iterator[Scored]:
        """Yield each shard as it is scored; `before` is called before it is begun. What that raises
        is raised when all shards that have begun are done."""
        rows = sum(plan.shards[number].rows for number in numbers)
        count = min(self._processes or useful_processes(rows), len(numbers))
        if count > 1:
            yield from self._in_workers(list(numbers), count, before)
            return
        for number in numbers:
            before(number)
            begun = time.monotonic()
            part = part_path(self._folder.folder, self._specification, plan, number)
            counts = self._own.score(plan, number, sources, part, self._between)
            yield number, counts, time.monotonic() - begun

    def _in_workers(self, waiting: list[int], count: int, before: Before) -> Iterator[Scored]:
        self._workers = [self._worker() for _ in range(count)]
        over: BaseException | None = None
        deaths: dict[int, int] = {}
        waiting.reverse()
        while True:
            for worker in self._workers:
                if worker.number is None and waiting and over is None:
                    try:
                        before(waiting[-1])
                        worker.begin(waiting.pop())
                    except Exception as exc:  # a stop, or the disk: the others are waited for
                        over = exc
            if not any(worker.number is not None for worker in self._workers):
                if over is not None:
                    raise over
                return
            for found in self._answers():
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

    def _answers(self) -> Iterator[Scored | int]:
        """Yield what has been scored, and the shards of processes that have died."""
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
                self._workers[self._workers.index(worker)] = self._worker()
                yield number
                continue
            worker.number = None
            answer = json.loads(line)
            if "error" in answer:
                raise KINDS[answer["kind"]](answer["error"])
            yield number, Counts.model_validate(answer["counts"]), answer["seconds"]

    def _worker(self) -> "_Worker":
        return _Worker(self._folder, self._max_bytes, self._lock)


class _Worker:
    """A process that scores one shard after the other."""

    def __init__(self, folder: JobFolder, max_bytes: int, lock: tuple[int, ...]) -> None:
        self.number: int | None = None
        command = [sys.executable, "-m", "streams.batch.jobs.worker", str(folder.folder)]
        self._process = subprocess.Popen(
            [*command, str(max_bytes), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
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
