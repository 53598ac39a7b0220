"""The agent with a clock in it: `python -m tests.bench.edge.answers.driver PLAN` serves until
SIGTERM.

It is the real agent with its threads, its source and its settings. Each segment that comes is
answered by the agent and by a bare onnxruntime call; the one that comes first is timed: three of
four times the agent's own way to answer, else the bare call. So each is the first call after the
pause in which the machine forgets, both run as often, and both see the same machine. A pass has an
odd number of segments, so each segment comes to either in its turn.

What was timed goes to `<folder>/timed.npy` at the end: rows of when (CLOCK_MONOTONIC, which all
processes share), what (TIMED's place), and seconds.
"""

import itertools
import json
import logging
import signal
import sys
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from streams.kafka.settings import BrokerSettings

if TYPE_CHECKING:
    from edge_client.agent import Agent
    from edge_client.sources.replay import Cut

ANSWER, ACCEPTED, BARE = range(3)
TIMED = ("Answers.answer", "of it to the spool's memory", "bare call")
BARE_EVERY = 4
WEIGHTS_FILE = "model.safetensors"
DEVICE = "bench"


@dataclass(frozen=True)
class DriverPlan:
    """What a driver is told, as JSON on its command line."""

    task: str
    folder: str  # has model.twa, model.onnx and signing.pub; the device's state goes into it too
    bootstrap: str
    speed: float
    engine: str = "onnxruntime"  # or "eager": torch

    def argument(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_argv(cls) -> Self:
        return cls(**json.loads(sys.argv[1]))


def main() -> None:
    plan = DriverPlan.from_argv()
    if plan.engine == "eager":
        from tests.bench.edge.answers import torch_engine

        torch_engine.take_over()
    from edge_client.agent import Agent
    from edge_client.settings import EdgeSettings
    from streams.contract.task import load_task

    folder = Path(plan.folder)
    task = load_task(plan.task)
    if plan.engine == "eager":
        bare = torch_engine.bare_call(task, folder / WEIGHTS_FILE)
    else:
        from tests.bench.edge.answers.bare import bare_call

        bare = bare_call(folder / "model.onnx")

    logging.basicConfig(level=logging.WARNING)
    agent = Agent(
        EdgeSettings(
            task_ref=plan.task,
            device=DEVICE,
            folder=folder / "device",
            broker=BrokerSettings(bootstrap=plan.bootstrap),
            trusted=(folder / "signing.pub",),
            model=folder / "model.twa",
            speed=plan.speed,
            drain_s=0,
        ),
        task,
    )
    timed = time_answers(agent, bare)

    def end(*_: object) -> None:
        """Save first: on a full disk the agent may take longer to stop than it is given."""
        np.save(folder / "timed.npy", np.array(timed[:]).reshape(-1, 3))
        agent.stop()

    signal.signal(signal.SIGTERM, end)
    threading.excepthook = threading.__excepthook__
    agent.run()


def time_answers(agent: "Agent", bare: Callable[[np.ndarray], object]) -> "array[float]":
    """Put a clock around the agent's way to answer; where the times are collected."""
    timed, answer, slots = array("d"), agent._answers.answer, agent._slots
    turns = itertools.count(1)

    def answer_timed(cut: "Cut") -> None:
        clock, began = time.perf_counter, time.monotonic()
        if next(turns) % BARE_EVERY == 0:
            start = clock()
            bare(cut.segment)
            timed.extend((began, BARE, clock() - start))
            answer(cut)
            return
        start = clock()
        answer(cut)
        timed.extend((began, ANSWER, clock() - start))
        bare(cut.segment)
        if slots.engine is not None and slots.engine.latencies:
            timed.extend((began, ACCEPTED, slots.engine.latencies[-1]))

    agent._answers.answer = answer_timed  # type: ignore[method-assign]
    return timed


if __name__ == "__main__":
    main()
