"""What is learned in one process: the task's people, first models by seed, and two processes that
train."""

import logging
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.support.in_process import Person, Tensors, read_people
from federation.bootstrap.first_models import fit_model
from federation.evaluation.accuracy import HeldOut
from streams.contract.task import Task, load_task

TASK = "streams.tasks.har:task"
PROCESSES = 2
WORSE = 1.0  # points that a device may lose without being called worse
Found = TypeVar("Found")


@dataclass(frozen=True)
class Study:
    """The built-in task's people. `folder`: of this process."""

    folder: Path
    quick: bool

    @cached_property
    def task(self) -> Task:
        return load_task(TASK)

    @cached_property
    def fleet(self) -> list[Person]:
        return read_people(self.task, "fleet")

    @cached_property
    def held_out(self) -> list[Person]:
        return read_people(self.task, "held-out")

    @cached_property
    def _first(self) -> dict[int, Tensors]:
        return {}

    def first_model(self, seed: int) -> Tensors:
        """Return the model that the pilots train, for a seed."""
        if seed not in self._first:
            people = read_people(self.task, "pilot")
            rows = HeldOut(
                np.concatenate([p.segments for p in people]),
                np.concatenate([p.labels for p in people]),
            )
            state = fit_model(self.task, rows, seed).state_dict()
            self._first[seed] = {n: tensor.numpy().copy() for n, tensor in sorted(state.items())}
        return dict(self._first[seed])

    def rounds(self, full: int) -> int:
        return 2 if self.quick else full

    def seeds(self, full: int) -> Sequence[int]:
        return range(1, 2 if self.quick else full + 1)


_study: Study | None = None


def study_here() -> Study:
    """Return the study of this process of the pool."""
    assert _study is not None
    return _study


def _begin(folder: Path, quick: bool) -> None:
    global _study
    torch.set_num_threads(1)
    logging.getLogger("federation").setLevel(logging.CRITICAL)
    _study = Study(Path(tempfile.mkdtemp(dir=folder)), quick)


def in_two_processes(
    folder: Path, quick: bool, work: Callable[..., Found], jobs: Iterable[tuple[Any, ...]]
) -> list[Found]:
    """Do `work` with the arguments of each job; return the results in their order."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(PROCESSES, _begin, (folder, quick)) as pool:
        return pool.starmap(work, list(jobs), chunksize=1)
