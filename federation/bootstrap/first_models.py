"""The first device model and the first teacher: trained on central data, or as a user gives
them: a file of safetensors, or a state dict that torch has saved.

Nothing is unpickled but tensors in plain containers: torch.load with `weights_only`.
"""

import contextlib
import copy
import hashlib
import io
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from federation.bootstrap.dataset import Segments, TeacherWindows, group
from federation.bootstrap.onnx_export import read_graph
from federation.evaluation.accuracy import HeldOut
from streams.contract.errors import UsageError
from streams.contract.task import OnnxFile, Task
from streams.learning.learning import (
    OnnxModule,
    PerSegment,
    build_model,
    build_teacher,
    fit,
    load_state,
    segment_loss,
    window_loss,
)

NAMED = 3  # tensors in an error
WRAPPED = ("state_dict", "model")  # keys under which trainers save it


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Return the tensors of a file, and its name with its SHA-256; raise UsageError."""
    state: Any
    try:
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            state = safetensors.torch.load(data)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickles that it then refuses
                state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    except Exception as exc:  # safetensors', torch's, or of an unpickler that refuses
        raise UsageError(
            f"{path} has no weights that can be read: {_why(path, data, exc)}"
        ) from exc
    for key in WRAPPED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
        raise UsageError(f"{path} holds {type(state).__name__}, not a state dict of tensors")
    tensors = {str(name): _array(tensor) for name, tensor in state.items()}
    return tensors, f"{path.name} sha256:{hashlib.sha256(data).hexdigest()}"


def _why(path: Path, data: bytes, exc: Exception) -> str:
    """Return what a refused file is, and what to do. torch's own text advises to run its code."""
    save = "save model.state_dict(), by safetensors.torch.save_file or torch.save"
    if path.suffix == ".onnx":
        return "it is an ONNX file, which goes into build_model=OnnxFile(...)"
    if data[:2] == b"PK" and b"/code/__torch__" in data:
        return "it is TorchScript, which goes into build_model=OnnxFile(...)"
    if "weights_only" in str(exc):
        return f"it holds more than tensors, as code or a whole module, and was not run: {save}"
    return f"it is not whole, or of another kind: {save}"


def loaded(
    model: nn.Module, tensors: Mapping[str, np.ndarray], where: Path, what: str = "model"
) -> nn.Module:
    """Load the tensors into a model whose names and shapes they have; counters of batch norm may be
    missing. Raise UsageError; what: the model's name in the task."""
    expected = {name: value.numpy() for name, value in model.state_dict().items()}
    lacks = [n for n, v in expected.items() if n not in tensors and v.dtype.kind == "f"]
    more = [name for name in tensors if name not in expected]
    other = [f"{n} {tensors[n].shape}, not {expected[n].shape}" for n in tensors
             if n in expected and tensors[n].shape != expected[n].shape]  # fmt: skip
    for wrong, names in (("lacks", lacks), ("has also", more), ("has", other)):
        if names:
            rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise UsageError(
                f"{where} does not fit the task's {what}: it {wrong} {', '.join(names[:NAMED])}"
                f"{rest}" + (f", and has {more[0]}" if wrong == "lacks" and more else "")
            )
    if not all(np.isfinite(value).all() for value in tensors.values() if value.dtype.kind == "f"):
        raise UsageError(f"{where} has weights that are not finite")
    cast = {n: np.asarray(tensors.get(n, v), v.dtype) for n, v in expected.items()}
    return load_state(model, cast).eval()


def _array(tensor: torch.Tensor) -> np.ndarray:
    whole = tensor.detach().cpu()
    found: np.ndarray = (whole.float() if whole.is_floating_point() else whole).numpy()
    return found


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
