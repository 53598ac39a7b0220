"""What the sections in one process share: sizes, the task, its people, and a place for rows."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from federation.bootstrap.initial_model import fit_model
from federation.evaluation.accuracy import HeldOut
from streams.contract.task import Task
from tests.bench.federation.people import Person, read_people
from tests.bench.federation.trainees import Tensors


@dataclass(frozen=True)
class Size:
    """seeds: of all that is random; rounds: after which of them the fleet is measured."""

    seeds: Sequence[int]
    rounds: Sequence[int]
    attack_rounds: int


FULL = Size((1, 2, 3, 4, 5), (1, 5, 10, 20), 10)
QUICK = Size((1, 2), (1, 3), 3)


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
