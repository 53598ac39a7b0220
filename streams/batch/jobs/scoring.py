"""One shard scored into its output file, in whatever process.

A device answers one segment at a time. A batch is faster, and is taken only if it gives the same
bits as single segments.

`Scorers` does step 4 of a job's shards in this process, or in several, one shard each at a time. A
worker is `python -m streams.batch.jobs.scoring FOLDER PARENT`. It reads the numbers of shards from
its standard input and answers each with a line of JSON on its standard output; what the task or a
library prints goes to standard error. It is killed with this process (Linux), and ends when its
input ends. One that dies costs its shard's attempt.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from streams.batch.jobs.answers import Answering, Model, output_fields
from streams.batch.jobs.job_folder import JobFolder
from streams.batch.output_files import part_path, writing
from streams.batch.progress import Counts, Plan
from streams.batch.rows import Rows, may_pass
from streams.batch.sources.plan import Sources
from streams.batch.sources.tables import Failures
from streams.batch.sources.windows import ShardRows, Teacher
from streams.batch.specification import Specification
from streams.contract.artifact import Artifact
from streams.contract.errors import ArtifactError, Retryable, TidewheelError, UsageError, line_of
from streams.contract.task import Task, load_task
from streams.learning.drift_reference import reference_of
from streams.learning.onnx_model import OnnxModel
from streams.runtime.process import end_with_parent


class ShardScorer:
    """Scores shards of one job with its model."""

    def __init__(self, folder: JobFolder, specification: Specification, task: Task) -> None:
        """Load the model; raise UsageError if it cannot be used."""
        self.specification, self._task = specification, task
        self._reading = ShardRows(folder.folder, specification, task)
        artifact, _, weights = folder.models(specification)
        self._run, self._teacher = None, None
        try:
            if specification.kind == "teacher":
                self._teacher = load_teacher(task, artifact)
            else:
                self._run = OnnxModel(task, artifact, weights).run
            self.reference = reference_of(artifact)
        except ArtifactError as exc:
            raise UsageError(f"the job's model {folder.model}: {exc}") from exc

    @cached_property
    def answering(self) -> Answering:
        batch = 1 if self._run is None else fastest_batch(self._task, self._run)
        model = self.specification.model
        return Answering(self._task, model, self._run, self.reference, batch)

    def score(self, plan: Plan, number: int, sources: Sources, part: Path) -> Counts:
        """Write the rows of a shard to `part`, which is replaced as a whole; raise TidewheelError
        if its file is not what it was."""
        specification, shard = self.specification, plan.shards[number]
        file = plan.files[shard.file]
        sources.check(shard.file)
        schema = output_fields(self._task, specification, file)
        json_lines = specification.input_format in ("jsonl", "bedrock")
        texts = specification.columns.keep if json_lines else ()
        counts = Counts()
        with writing(part, specification.output_format, schema, texts) as write:
            for rows in self._rows(plan, number):
                table, found = self.answering.answer(rows, file.name, schema)
                write(table)
                counts = counts.plus(found)
            sources.check(shard.file)
            if counts.read != shard.rows or counts.readings != shard.readings:
                raise TidewheelError(
                    f"{file.name} gave {counts.read} of {shard.rows} rows of a shard"
                )
        return counts

    def _rows(self, plan: Plan, number: int) -> Iterator[Rows]:
        if self._teacher is None:
            return self._reading.rows(plan, number)
        return self._reading.taught(plan, number, self._teacher)


def load_teacher(task: Task, artifact: Artifact) -> Teacher:
    """Return a teacher that scores each window in a forward pass of its own, on one thread of the
    CPU; raise ArtifactError if it does not fit the task."""
    try:
        from streams.learning.teacher import pin_threads, teacher_of
    except ImportError as exc:
        raise ArtifactError("not-runnable", f"a teacher needs torch: {exc}") from exc
    pin_threads()
    return teacher_of(task, artifact, artifact.model, rows_per_call=1).score


TOGETHER = 64  # segments


def fastest_batch(task: Task, run: Model) -> int:
    """Return how many segments are answered at once: one, if several together have other bits."""
    noise = np.random.default_rng(0)
    segments = noise.normal(size=(TOGETHER, *task.segment_shape)).astype(np.float32)
    alone = np.concatenate([run(segments[i : i + 1]) for i in range(TOGETHER)])
    return TOGETHER if run(segments).tobytes() == alone.tobytes() else 1


# --- in this process, or in several ---------------------------------------------------------------

DEATHS = 3  # of one shard: the fourth process would die too
POLL_S = 0.2
ROWS_A_PROCESS = 20_000  # fewer are done before another process has started
KINDS = {"usage": UsageError, "passing": Retryable, "other": TidewheelError}  # of an error

Scored = tuple[int, Counts, float]


def useful_processes(rows: int) -> int:
    """Return how many processes are worth their start."""
    return max(1, min(cores(), rows // ROWS_A_PROCESS))


def cores() -> int:
    """Return how many this process may use."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


class Scorers:
    """What scores the shards of one job; at its end all processes have to be closed.

    processes  how many score; None: one a core where there are rows enough for it
    lock       the others inherit it, so that the folder is held until all of them are gone
    """

    def __init__(self, job: JobFolder, processes: int | None, lock: int | None = None) -> None:
        self._job, self._processes = job, processes
        self._lock = () if lock is None else (lock,)
        self._workers: list[_Worker] = []

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.kill()

    def start(self, plan: Plan, numbers: Sequence[int]) -> None:
        """Start the processes that these shards are worth, unless they are there; before the input
        is cut those that were asked for, at most one a core."""
        rows = sum(plan.shards[number].rows for number in numbers)
        count = min(self._processes or useful_processes(rows), len(numbers))
        if not plan.shards:
            count = min(self._processes or 1, cores())
        if not self._workers and count > 1:
            self._workers += [self._worker() for _ in range(count)]

    def score(
        self,
        own: ShardScorer,
        plan: Plan,
        sources: Sources,
        numbers: Sequence[int],
        before: Callable[[int], None],
    ) -> Iterator[Scored]:
        """Yield each shard as it is scored; `before` is called before it is begun. What that raises
        is raised when all shards that have begun are done. `own` scores where one process is
        enough."""
        self.start(plan, numbers)
        if self._workers and numbers:
            yield from self._by_workers(list(reversed(numbers)), before)
            return
        for number in numbers:
            before(number)
            begun = time.monotonic()
            part = part_path(self._job.folder, own.specification, plan, number)
            counts = own.score(plan, number, sources, part)
            yield number, counts, time.monotonic() - begun

    def _worker(self) -> "_Worker":
        return _Worker(str(self._job.folder), self._lock)

    def _by_workers(self, waiting: list[int], before: Callable[[int], None]) -> Iterator[Scored]:
        over: BaseException | None = None
        deaths: Counter[int] = Counter()
        busy: dict[Future[dict[str, Any] | None], tuple[_Worker, int]] = {}
        idle = list(self._workers)
        with ThreadPoolExecutor(len(idle)) as threads, closing(self):  # which ends the threads
            while busy or (waiting and over is None):
                while idle and waiting and over is None:
                    try:
                        before(waiting[-1])
                    except Exception as exc:  # a stop, or the disk: the others are waited for
                        over = exc
                        break
                    worker, number = idle.pop(), waiting.pop()
                    busy[threads.submit(worker.score, number)] = worker, number
                for future in wait(busy, POLL_S, FIRST_COMPLETED).done:
                    worker, number = busy.pop(future)
                    if (found := future.result()) is not None:
                        idle.append(worker)
                        yield number, *_counts_of(found)
                        continue
                    deaths[number] += 1
                    if deaths[number] == DEATHS:
                        text = f"{DEATHS} processes have died of shard {number}: see jobs show"
                        raise TidewheelError(text)
                    self._job.note(f"shard {number}: its process has died, it is begun again")
                    waiting.append(number)
                    idle.append(self._worker())
                    self._workers.append(idle[-1])
        if over is not None:
            raise over


def _counts_of(found: dict[str, Any]) -> tuple[Counts, float]:
    """Return what a worker has answered; raise what is wrong with the shard."""
    if "error" in found:
        raise KINDS[found["kind"]](found["error"])
    return Counts.of_fields(found["counts"]), found["seconds"]


class _Worker:
    """A process that scores one shard after the other."""

    def __init__(self, folder: str, lock: tuple[int, ...]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streams.batch.jobs.scoring", folder, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours to handle
            pass_fds=lock,
        )

    def score(self, number: int) -> dict[str, Any] | None:
        """Return the answer of the process; None if it has died."""
        with suppress(OSError, ValueError):
            self._process.stdin.write(f"{number}\n".encode())  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
            if line := self._process.stdout.readline():  # type: ignore[union-attr]
                return dict(json.loads(line))
        self.kill()
        return None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError, ValueError):
                pipe.close()  # type: ignore[union-attr]


# --- a worker -------------------------------------------------------------------------------------


def main() -> None:
    job, parent = JobFolder(Path(sys.argv[1])), int(sys.argv[2])
    if not end_with_parent(parent):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with suppress(TidewheelError, *Failures):  # what is wrong is in the first answer
        _ = _scorer(job).answering
    for line in sys.stdin:
        answers.write(json.dumps(_answer(job, int(line))) + "\n")
        answers.flush()


@cache
def _scorer(job: JobFolder) -> ShardScorer:
    found = job.specification()
    return ShardScorer(job, found, load_task(found.task.reference))


def _answer(job: JobFolder, number: int) -> dict[str, object]:
    """Write a shard's file; return its counts, or what is wrong, as JSON has it."""
    begun = time.monotonic()
    try:
        plan, scorer = job.plan(), _scorer(job)
        assert plan is not None
        part = part_path(job.folder, scorer.specification, plan, number)
        counts = scorer.score(plan, number, Sources(plan), part)
        return {"counts": counts.fields(), "seconds": time.monotonic() - begun}
    except (TidewheelError, *Failures) as exc:
        kind = "usage" if isinstance(exc, UsageError) else "other"
        return {"error": line_of(exc), "kind": "passing" if may_pass(exc) else kind}


if __name__ == "__main__":
    main()
