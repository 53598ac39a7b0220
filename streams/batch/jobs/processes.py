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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from streams.batch.jobs.job_folder import JobFolder
from streams.batch.jobs.scoring import ShardScorer
from streams.batch.records.documents import Plan
from streams.batch.records.progress import Counts
from streams.batch.sinks.files import part_path
from streams.batch.sources.plan import Sources
from streams.contract.errors import Retryable, TidewheelError, UsageError

DEATHS = 3  # of one shard: the fourth process would die too
POLL_S = 0.2
ROWS_A_PROCESS = 20_000  # fewer are done before another process has started
KINDS = {"usage": UsageError, "passing": Retryable, "other": TidewheelError}  # of an error

Scored = tuple[int, Counts, float]


def useful_processes(rows: int) -> int:
    """Return how many processes are worth their start."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, min(cores, rows // ROWS_A_PROCESS))


class Scorers:
    """What scores the shards of one job; at its end all processes have to be closed.

    own        scores in this process, which is the test of whether the model can be used
    processes  how many score; None: one a core where there are rows enough for it
    between    is called between two parts of the work
    lock       the others inherit it, so that the folder is held until all of them are gone
    """

    def __init__(
        self,
        job: JobFolder,
        own: ShardScorer,
        processes: int | None,
        between: Callable[[], None],
        lock: int | None = None,
    ) -> None:
        self._job, self._own, self._processes, self._between = job, own, processes, between
        self._lock = () if lock is None else (lock,)
        self._workers: list[_Worker] = []

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.kill()

    def begin(self, rows: int) -> None:
        """Start the processes if about so many rows are worth it: they load while the input is
        hashed."""
        count = self._processes or useful_processes(rows)
        if 1 < count <= rows // ROWS_A_PROCESS:
            self._start(count)

    def score(
        self, plan: Plan, sources: Sources, numbers: Sequence[int], before: Callable[[int], None]
    ) -> Iterator[Scored]:
        """Yield each shard as it is scored; `before` is called before it is begun. What that raises
        is raised when all shards that have begun are done."""
        rows = sum(plan.shards[number].rows for number in numbers)
        count = min(self._processes or useful_processes(rows), len(numbers))
        if not self._workers and count > 1:
            self._start(count)
        if self._workers:
            yield from self._by_workers(list(numbers), before)
            return
        for number in numbers:
            before(number)
            begun = time.monotonic()
            part = part_path(self._job.folder, self._own.specification, plan, number)
            counts = self._own.score(plan, number, sources, part, self._between)
            yield number, counts, time.monotonic() - begun

    def _start(self, count: int) -> None:
        self._workers += [self._worker() for _ in range(count)]

    def _worker(self) -> "_Worker":
        return _Worker([str(self._job.folder), str(self._own.max_bytes)], self._lock)

    def _by_workers(self, waiting: list[int], before: Callable[[int], None]) -> Iterator[Scored]:
        over: BaseException | None = None
        deaths: Counter[int] = Counter()
        waiting.reverse()
        while True:
            for worker in self._workers:
                if worker.number is None and waiting and over is None:
                    try:
                        before(waiting[-1])
                        worker.begin(waiting.pop())
                    except Exception as exc:  # a stop, or the disk: the others are waited for
                        over = exc
            if all(worker.number is None for worker in self._workers):
                if over is not None:
                    raise over
                return
            for worker in self._ready():
                number, found = worker.answer()
                if found is not None:
                    yield number, *found
                    continue
                self._workers[self._workers.index(worker)] = self._worker()
                deaths[number] += 1
                if deaths[number] == DEATHS:
                    text = f"{DEATHS} processes have died of shard {number}: see jobs show"
                    raise TidewheelError(text)
                self._job.note(f"shard {number}: its process has died, it is begun again")
                waiting.append(number)
            self._between()

    def _ready(self) -> "list[_Worker]":
        """Wait for a moment; return the workers that have answered or died."""
        with selectors.DefaultSelector() as ready:
            for worker in self._workers:
                if worker.number is not None:
                    ready.register(worker.output, selectors.EVENT_READ, worker)
            return [key.data for key, _ in ready.select(POLL_S)]


class _Worker:
    """A process that scores one shard after the other."""

    def __init__(self, words: list[str], lock: tuple[int, ...]) -> None:
        self.number: int | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streams.batch.jobs.worker", *words, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours to handle
            pass_fds=lock,
        )
        self._input: Any = self._process.stdin
        self.output: Any = self._process.stdout

    def begin(self, number: int) -> None:
        self.number = number
        with suppress(BrokenPipeError):  # it is dead: its output has ended
            self._input.write(f"{number}\n".encode())
            self._input.flush()

    def answer(self) -> tuple[int, tuple[Counts, float] | None]:
        """Return the shard, and its counts and seconds, None if the process has died; raise what is
        wrong with the shard."""
        number, line = self.number, self.output.readline()
        assert number is not None
        if not line:
            self.kill()
            return number, None
        self.number, found = None, json.loads(line)
        if "error" in found:
            raise KINDS[found["kind"]](found["error"])
        return number, (Counts.model_validate(found["counts"]), found["seconds"])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._input, self.output):
            with suppress(BrokenPipeError):
                pipe.close()
