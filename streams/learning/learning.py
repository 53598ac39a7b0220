"""Plain torch loops: train a model, run it, load and save its weights as safetensors.

The same loop trains the first model, the teacher and the devices' models, so measurements on one
hold for the others. Needs torch; the device's agent never imports this module.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streams.contract.errors import TaskError
from streams.contract.task import NOTHING_LEARNS, OnnxFile, Task, is_under
from streams.learning.optimizers import step_of
from streams.learning.updates import is_statistic

MOST_NORM = 5.0  # of a batch's gradients


@dataclass(frozen=True)
class Fit:
    """Result of one training."""

    steps: int
    loss: float
    stopped: bool


def loss_per_row(task: Task, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the loss (n,) of outputs (n, outputs) and labels (n, label_size): cross-entropy, or
    squared error for targets."""
    if task.classes:
        return F.cross_entropy(outputs, labels[:, 0].long(), reduction="none")
    return F.mse_loss(outputs, labels, reduction="none").mean(dim=1)


def class_weights(task: Task, labels: Tensor) -> Tensor:
    """Return how much rows (n,) with these labels (n, label_size) count in a mean loss."""
    if not task.training.class_weights:
        return torch.ones(len(labels))
    return torch.tensor(task.training.class_weights)[labels[:, 0].long()]


def fit(
    model: nn.Module,
    rows: int,
    loss_of: Callable[..., Tensor],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    optimizer: str = "sgd",
    proximal: float = 0.0,
    train_only: Sequence[str] = (),
    keep_statistics: bool = False,
    at_once: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Fit:
    """Train `model` in place on `rows` examples; `loss_of(row numbers, generator)` is the mean loss
    of a batch, or with the batch as third argument what a part of it adds to that.

    "sgd" has momentum 0.9; "adamw" follows one cosine from `learning_rate` to zero. `proximal` is
    FedProx's mu: mu / 2 times the squared distance from the received weights is added to the loss
    (Li et al. 2020, arXiv 1812.06127). `train_only` names the modules and parameters that learn, as
    "head" or "features.3"; the others keep weights and statistics. With `keep_statistics` layers
    that have running statistics use them, as in evaluation, and leave them unchanged; their weights
    learn. Of a batch at most `at_once` rows are in memory: the gradients of its parts add up to
    those of its mean loss, but for batch norms, whose statistics are those of a part.
    `should_stop` is called between steps.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    model.train()
    parameters = _learning(model, train_only)
    if keep_statistics:
        _freeze_statistics(model)
    received = [p.detach().clone() for p in parameters] if proximal else []
    move = step_of(optimizer, parameters)
    total = max(1, epochs * math.ceil(rows / batch_size))
    step, last = 0, math.nan
    for _ in range(epochs):
        order = torch.randperm(rows, generator=generator)
        for batch in torch.split(order, batch_size):
            if should_stop():
                return Fit(step, last, stopped=True)
            rate = learning_rate
            if optimizer == "adamw":
                rate *= 0.5 * (1 + math.cos(math.pi * step / total))
            for parameter in parameters:
                parameter.grad = None
            mean = 0.0
            for part in torch.split(batch, at_once or len(batch)):
                loss = loss_of(part, generator, batch) if at_once else loss_of(part, generator)
                loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
                mean += float(loss.detach())
            for parameter, start in zip(parameters, received, strict=False):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - start, alpha=proximal)
            _clip(parameters)
            move(rate)
            step, last = step + 1, mean
    return Fit(step, last, stopped=False)


def _clip(parameters: Sequence[nn.Parameter]) -> None:
    """Shorten the gradients together to MOST_NORM. torch's `clip_grad_norm_` multiplies by 1 where
    they are short, which takes as long as a sixth of a large model's step."""
    gradients = [grad for parameter in parameters if (grad := parameter.grad) is not None]
    norm = nn.utils.get_total_norm(gradients)
    if not norm <= MOST_NORM:  # NaN, too
        nn.utils.clip_grads_with_norm_(parameters, MOST_NORM, norm)


def _learning(model: nn.Module, train_only: Sequence[str]) -> list[nn.Parameter]:
    """Return the parameters that learn; set the other modules to evaluation mode."""
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not train_only:
        return [p for _, p in learning]
    for name, module in model.named_modules():
        inside = is_under(name, train_only)
        if not inside and not any(is_under(chosen, [name]) for chosen in train_only):
            module.train(False)
    return [p for name, p in learning if is_under(name, train_only)]


def _freeze_statistics(model: nn.Module) -> None:
    """Set the modules with running statistics to evaluation mode."""
    for module in model.modules():
        if any(is_statistic(name) for name, _ in module.named_buffers(recurse=False)):
            module.train(False)


def segment_loss(
    task: Task,
    model: nn.Module,
    segments: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
) -> Callable[..., Tensor]:
    """Return a function for `fit`: the mean loss over segments (n, channels, samples) with labels
    (n, label_size) and weights (n,)."""
    x, y = torch.from_numpy(segments), torch.from_numpy(labels)
    w = torch.ones(len(x)) if weights is None else torch.from_numpy(weights.astype(np.float32))
    w = w * class_weights(task, y)

    def loss_of(rows: Tensor, generator: torch.Generator, of: Tensor | None = None) -> Tensor:
        batch: Tensor = x[rows]  # (batch, channels, samples)
        if task.augment is not None:
            batch = task.augment(batch, generator)
        losses = loss_per_row(task, model(batch), y[rows])  # (batch,)
        return (losses * w[rows]).sum() / w[rows if of is None else of].sum().clamp(min=1e-6)

    return loss_of


def window_loss(
    task: Task, model: nn.Module, windows: np.ndarray, mask: np.ndarray, labels: np.ndarray
) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Return a function for `fit`: a teacher's mean loss over the labelled segments of windows.

    windows (n, segments, channels, samples); mask (n, segments) bool; labels (n, segments,
    label_size), NaN where unknown.
    """
    x, m, y = torch.from_numpy(windows), torch.from_numpy(mask), torch.from_numpy(labels)

    def loss_of(rows: Tensor, generator: torch.Generator) -> Tensor:
        batch, inside = x[rows], m[rows]
        if task.augment is not None:
            batch = task.augment(batch.flatten(0, 1), generator).view_as(batch)
        outputs: Tensor = model(batch, inside)  # (batch, segments, outputs)
        known = inside & ~y[rows].isnan().any(dim=2)
        if not known.any():
            return outputs.sum() * 0.0
        counts = class_weights(task, y[rows][known])
        return (loss_per_row(task, outputs[known], y[rows][known]) * counts).sum() / counts.sum()

    return loss_of


def bytes_per_row(model: nn.Module, segments: np.ndarray) -> int:
    """Return what a row of a batch takes in training: four times what the backward pass needs of
    it, because gradients, buffers of convolutions and what the allocator does not return come
    beside it (measured: up to 2.7 times)."""
    known, found = {parameter.data_ptr() for parameter in model.parameters()}, 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal found
        found += 0 if tensor.data_ptr() in known else tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(torch.from_numpy(segments))
    return max(1, 4 * found // len(segments))


@torch.no_grad()
def predict(model: nn.Module, segments: np.ndarray, batch_size: int = 1024) -> np.ndarray:
    """Return the outputs (n, outputs) float32 of segments (n, channels, samples)."""
    model.eval()
    parts = [model(part).numpy() for part in torch.split(torch.from_numpy(segments), batch_size)]
    return np.concatenate(parts).astype(np.float32, copy=False)


class PerSegment(nn.Module):
    """A teacher that applies a segment model to each segment of a window. Padding is left out: a
    batch norm would count it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, windows: Tensor, mask: Tensor) -> Tensor:
        there = mask.flatten()
        known = self.model(windows.flatten(0, 1)[there])  # (segments that exist, outputs)
        flat = known.new_zeros((len(there), known.shape[1]))
        flat[there] = known
        return torch.unflatten(flat, 0, windows.shape[:2])


def embeddings(model: nn.Module) -> dict[str, nn.Embedding]:
    """Return the model's embeddings by the names of their weights."""
    modules = model.named_modules()
    return {f"{name}.weight": m for name, m in modules if isinstance(m, nn.Embedding)}


@contextmanager
def rows_used(model: nn.Module) -> Iterator[dict[str, np.ndarray]]:
    """While inside, note which rows of each embedding the model reads: by the name of its weights,
    (rows,) bool."""
    found = embeddings(model)
    used = {name: torch.zeros(len(m.weight), dtype=torch.bool) for name, m in found.items()}

    def note(name: str) -> Callable[..., None]:
        def noted(_module: nn.Module, given: tuple[Tensor, ...], _answer: Tensor) -> None:
            used[name][given[0].reshape(-1)] = True

        return noted

    hooks = [module.register_forward_hook(note(name)) for name, module in found.items()]
    try:
        yield {name: rows.numpy() for name, rows in used.items()}  # the same memory
    finally:
        for hook in hooks:
            hook.remove()


class OnnxModule(nn.Module):
    """A file of ONNX in the place of a torch module: it answers segments (n, channels, samples) and
    has no weights that learn. Copies share the session, which several threads may run. digest: the
    SHA-256 of the file that the graph is of."""

    def __init__(self, graph: bytes, around: OnnxFile, digest: str = "") -> None:
        super().__init__()
        from streams.learning.onnx_model import OnnxSession  # a worker needs no onnxruntime else

        self.graph, self.around, self.digest = graph, around, digest
        self._session = OnnxSession(graph, {}, around)

    def __deepcopy__(self, _memo: dict[int, Any]) -> "OnnxModule":
        return self

    def forward(self, segments: Tensor) -> Tensor:
        answers = self._session.run(segments.detach().cpu().numpy())
        return torch.from_numpy(answers).to(segments.device)


def build_model(task: Task) -> nn.Module:
    """Return a new device model, of a task that learns."""
    if isinstance(task.build_model, OnnxFile):
        raise TaskError(f"task {task.name!r}: {NOTHING_LEARNS}")
    return task.build_model()


def build_teacher(task: Task, graph: bytes | None = None) -> nn.Module:
    """Return the task's teacher, or its device model applied per segment if it has none; where it
    is a file of ONNX, that of its `graph`."""
    build = task.build_teacher or task.build_model
    if isinstance(build, OnnxFile):
        return PerSegment(OnnxModule(graph or b"", build))
    return build() if task.build_teacher is not None else PerSegment(build())


def to_safetensors(state: Mapping[str, Tensor | np.ndarray]) -> bytes:
    """Encode a state dict as safetensors, in its key order."""
    arrays = {
        name: np.asarray(
            value.detach().cpu().numpy() if isinstance(value, Tensor) else value, order="C"
        )
        for name, value in state.items()
    }
    return safetensors.numpy.save(arrays)


def half(tensor: np.ndarray) -> np.ndarray:
    """Cast to float16."""
    return torch.from_numpy(tensor).half().numpy()


def load_weights(model: nn.Module, data: bytes) -> nn.Module:
    """Load safetensors bytes into `model`; keys and shapes must match exactly."""
    return load_state(model, safetensors.numpy.load(data))


def load_state(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> nn.Module:
    """Load tensors into `model`; keys and shapes must match exactly."""
    model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in arrays.items()})
    return model
