"""The models of a job, loaded from verified artifacts (torch only where a teacher answers), and how
many segments one answers at once: measured at start, without a change of any bit.

A device answers one segment at a time. Larger batches are faster up to the size of the processor's
cache; one is taken only if it gives the same bits as single segments.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from streams.contract.artifact import Artifact
from streams.contract.errors import ArtifactError, UsageError
from streams.contract.task import Task
from streams.learning.onnx_model import OnnxModel

if TYPE_CHECKING:
    from streams.learning.teacher import Teacher


KINDS = ("model", "teacher")  # of artifacts


def load_teacher(task: Task, artifact: Artifact) -> "Teacher":
    """Return a teacher that scores each window in a forward pass of its own, on one thread of the
    CPU; raise ArtifactError if it does not fit the task."""
    try:
        from streams.learning.teacher import pin_threads, teacher_of
    except ImportError as exc:
        raise ArtifactError("not-runnable", f"a teacher needs torch: {exc}") from exc
    pin_threads()
    return teacher_of(task, artifact, artifact.model, rows_per_call=1)


def check_models(
    task: Task,
    artifact: Artifact,
    weights: bytes | None,
    teacher: Artifact | None,
) -> None:
    """Raise ArtifactError or UsageError if a model of a job cannot answer; `weights` are those of a
    personal model."""
    if teacher is not None and {artifact.manifest.kind, teacher.manifest.kind} != set(KINDS):
        raise UsageError("--teacher is a teacher's artifact, beside a model that is none")
    if artifact.manifest.kind == "teacher":
        load_teacher(task, artifact)
    else:
        OnnxModel(task, artifact, weights)
    if teacher is not None:
        load_teacher(task, teacher)


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
