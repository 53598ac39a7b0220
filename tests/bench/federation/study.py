"""What the sections without processes of Flower's share: sizes, the task, its people, and two
processes that train."""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from federation.bootstrap.initial_model import fit_model
from federation.evaluation.accuracy import HeldOut
from streams.contract.task import Task, load_task
from tests.bench.federation.people import Person, read_people
from tests.bench.federation.trainees import Tensors

TASK = "streams.tasks.har:task"
PROCESSES = 2
Found = TypeVar("Found")


@dataclass(frozen=True)
class Size:
    """seeds: of what is learned; rounds: after which of them the fleet is measured; attack_seeds,
    attack_rounds, strategies (the first ones): under attack; half_rounds: of float16 beside
    float32; crowd_seeds: of the two hundred devices."""

    seeds: Sequence[int]
    rounds: Sequence[int]
    attack_seeds: Sequence[int]
    attack_rounds: int
    strategies: int
    half_rounds: int
    crowd_seeds: Sequence[int]


FULL = Size((1, 2, 3, 4, 5), (1, 5, 10), (1, 2), 4, 5, 6, (1, 2, 3))
QUICK = Size((1, 2), (1, 2), (1,), 2, 2, 1, (1,))


@dataclass
class Study:
    folder: Path
    task: Task
    size: Size
    _first: dict[int, Tensors] = field(default_factory=dict)

    @cached_property
    def fleet(self) -> list[Person]:
        return read_people(self.task, "fleet")

    @cached_property
    def held_out(self) -> list[Person]:
        return read_people(self.task, "held-out")

    @cached_property
    def pilots(self) -> HeldOut:
        people = read_people(self.task, "pilot")
        return HeldOut(
            np.concatenate([p.segments for p in people]), np.concatenate([p.labels for p in people])
        )

    def first_model(self, seed: int) -> Tensors:
        """As the pilot makes it, for a seed."""
        if seed not in self._first:
            state = fit_model(self.task, self.pilots, seed).state_dict()
            self._first[seed] = {name: tensor.numpy().copy() for name, tensor in state.items()}
        return dict(sorted(self._first[seed].items()))

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)  # noqa: T201


@cache
def study_here(size: Size) -> Study:
    """Return this process's own study."""
    torch.set_num_threads(1)
    return Study(Path(tempfile.mkdtemp(dir=_folder)), load_task(TASK), size)


_folder: Path | None = None


def _begin(folder: Path) -> None:
    global _folder
    _folder = folder


def in_two_processes(
    folder: Path, work: Callable[..., Found], jobs: Iterable[tuple[Any, ...]]
) -> list[Found]:
    """Do `work` with the arguments of each job; what comes of them, in their order. `folder`: for
    the files of both processes."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(PROCESSES, _begin, (folder,)) as pool:
        return pool.starmap(work, list(jobs), chunksize=1)
