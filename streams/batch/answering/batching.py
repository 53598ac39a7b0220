"""How many segments the model answers at once: measured at start, without a change of any bit.

A device answers one segment at a time. Larger batches are faster up to the size of the processor's
cache; one is taken only if it gives the same bits as single segments.
"""

import time
from collections.abc import Callable

import numpy as np

from streams.contract.task import Task

SIZES = (1, 4, 16, 64, 256, 1024)
TRIED = 1024  # segments that the largest batch is tried with
ENOUGH_S = 0.05  # of one size: a slow model is not measured for long

Run = Callable[[np.ndarray], np.ndarray]


def fastest_batch(task: Task, run: Run, clock: Callable[[], float] = time.perf_counter) -> int:
    """Return the batch size with the most segments a second whose answers have the bits of single
    ones."""
    noise = np.random.default_rng(0)
    segments = noise.normal(size=(TRIED, *task.segment_shape)).astype(np.float32)
    alone = np.zeros((0, task.outputs), np.float32)
    best, rate = 1, 0.0
    for size in SIZES:
        answers: list[np.ndarray] = []
        begun, done = clock(), 0
        while done < TRIED and (not answers or clock() - begun < ENOUGH_S):
            answers.append(run(segments[done : done + size]))
            done += size
        found = done / max(clock() - begun, 1e-9)
        together = np.concatenate(answers)
        if size == 1:
            alone = together
        if together[: len(alone)].tobytes() != alone[: len(together)].tobytes():
            break
        if found > rate:
            best, rate = size, found
    return best
