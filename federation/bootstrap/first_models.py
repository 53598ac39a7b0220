"""The first device model and the first teacher: trained on central data, or as a user gives
them."""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from federation.bootstrap.dataset import Segments, TeacherWindows, group
from federation.bootstrap.onnx_export import read_graph
from federation.bootstrap.weights_file import loaded, read_weights
from federation.evaluation.accuracy import HeldOut
from streams.contract.task import OnnxFile, Task
from streams.learning.learning import (
    PerSegment,
    build_model,
    build_teacher,
    fit,
    segment_loss,
    window_loss,
)
from streams.learning.onnx_module import OnnxModule

WINDOWS_PER_BATCH = 12
LARGE = 50_000_000  # multiplications of a batch, from which threads are worth their waiting
LEARNING_RATE, TEACHER_LEARNING_RATE = 2e-3, 3e-3
EACH_S = 10.0  # between two words about a training

Progress = Callable[[str], None]


def steps_said(
    progress: Progress, what: str, rows: int, batch_size: int, epochs: int,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[], bool]:  # fmt: skip
    """Return what `fit` calls before each step: it never stops one, and says each EACH_S how far it
    is."""
    steps = math.ceil(rows / batch_size)
    began = said = clock()
    done = -1

    def step() -> bool:
        nonlocal done, said
        done, now = done + 1, clock()
        if done and now - said >= EACH_S:
            left, said = (now - began) / done * (epochs * steps - done), now
            epoch = f"epoch {done // steps + 1} of {epochs}"
            for_s = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
            progress(f"training {what}: {epoch}, {for_s} left")
        return False

    return step


@contextlib.contextmanager
def few_threads(task: Task) -> Iterator[None]:
    """torch runs on one thread where no layer of model and teacher is LARGE, else on one less than
    it would: threads share each layer and wait for the slowest, of small ones longer than they
    work, and where another program has one of their cores, up to six times as long as one takes."""
    segments, work = torch.zeros(2, *task.segment_shape), 0.0
    windows = segments.expand(2, *segments.shape), torch.ones(2, 2, dtype=torch.bool)
    for build, inputs, times in (
        (task.build_model, (segments,), task.training.batch_size / 2),
        (task.build_teacher, windows, WINDOWS_PER_BATCH * task.segments_per_window / 4),
    ):
        if callable(build):
            work = max(work, times * _largest_layer(build(), inputs))
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - 1) if work >= LARGE else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _largest_layer(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    """Return the multiplications of the layer with the most: a weight is used once for each place
    of the output."""
    found = [0]

    def note(module: nn.Module, _given: object, answer: object) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding) or not isinstance(weight, torch.Tensor):
            return
        if weight.dim() > 1 and isinstance(answer, torch.Tensor):
            found.append(weight[0].numel() * answer.numel())

    for module in model.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        model(*inputs)
    return max(found)


def first_model(task: Task, known: HeldOut, seed: int, progress: Progress) -> tuple[nn.Module, str]:
    """Return the first device model, trained or as it is given, and where it is from."""
    if isinstance(task.build_model, OnnxFile):
        given = read_graph(task, task.build_model)
        return given, f"{Path(task.build_model.path).name} sha256:{given.digest}"
    if task.first_model:
        path = Path(task.first_model)
        progress(f"reading the first model's weights from {path}")
        tensors, source = read_weights(path)
        return loaded(build_model(task), tensors, path), source
    progress("training the first device model")
    return fit_model(task, known, seed, progress), ""


def first_teacher(
    task: Task, given: nn.Module | None, central: list[Segments], seed: int, progress: Progress
) -> nn.Module:
    """Return the teacher. A task without `build_teacher` whose first model is `given` has that one,
    which learns where something is labelled."""
    if isinstance(task.build_teacher, OnnxFile):
        return PerSegment(read_graph(task, task.build_teacher))
    if task.build_teacher is None and given is not None:
        teacher: nn.Module = PerSegment(copy.deepcopy(given))
    else:
        teacher = build_teacher(task)
    data = group(task, central)
    learns = any(parameter.requires_grad for parameter in teacher.parameters())
    if not learns or not (data.mask & ~np.isnan(data.labels).any(axis=2)).any():
        return teacher.eval()
    progress("training the teacher")
    return fit_teacher(task, data, seed, teacher, progress)


def graph_of(teacher: nn.Module) -> bytes:
    """Return the graph of a teacher that is a file of ONNX; else nothing."""
    inside = teacher.model if isinstance(teacher, PerSegment) else None
    return inside.graph if isinstance(inside, OnnxModule) else b""


def fit_model(
    task: Task, data: HeldOut, seed: int, progress: Progress = lambda _: None
) -> nn.Module:
    """Return the first device model, trained on the pilot's data without augmentation: the
    variation between devices, which the augmentation imitates, is left for the fleet to learn."""
    task = replace(task, augment=None)
    torch.manual_seed(seed)  # the initial weights
    model = build_model(task)
    t = task.training
    fit(
        model,
        len(data.labels),
        segment_loss(task, model, data.segments, data.labels),
        epochs=t.central_epochs,
        batch_size=t.batch_size,
        learning_rate=LEARNING_RATE,
        seed=seed,
        optimizer="adamw",
        should_stop=steps_said(
            progress, "the first model", len(data.labels), t.batch_size, t.central_epochs
        ),
    )
    return model.eval()


def fit_teacher(
    task: Task,
    data: TeacherWindows,
    seed: int,
    teacher: nn.Module | None = None,
    progress: Progress = lambda _: None,
) -> nn.Module:
    """Return the teacher, trained on windows of the pilot and the lab, from a new one or this."""
    torch.manual_seed(seed)
    teacher = build_teacher(task) if teacher is None else teacher
    t = task.training
    fit(
        teacher,
        len(data.mask),
        window_loss(task, teacher, data.windows, data.mask, data.labels),
        epochs=t.central_epochs,
        batch_size=WINDOWS_PER_BATCH,
        learning_rate=TEACHER_LEARNING_RATE,
        seed=seed,
        optimizer="adamw",
        should_stop=steps_said(
            progress, "the teacher", len(data.mask), WINDOWS_PER_BATCH, t.central_epochs
        ),
    )
    return teacher.eval()
