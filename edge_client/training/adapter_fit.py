"""Fits an input adapter (streams.learning.input_adapter) before the served weights, and tests it.

STEPS steps of Adam on all rows at once, from the identity. The loss is that of the labels (Lee et
al. 2023, "Surgical fine-tuning": a shift of the input is mended before the model, not in it), PULL
times the squared distance from the identity, and ALIGN times the alignment of all rows, labelled or
not: for each batch norm of the model, the squared difference of its input's mean to the running
mean, in running deviations, plus that of the logarithms of the variances. A model without batch
norm is aligned by the means and variances of its input's channels, which the release's reference
has. With labels of one class alone only the alignment is left: the class would draw everything into
it. While the sensor has not drifted the rows without a label count, too, with ANCHOR times the
distance from what the model answers to them without the adapter: so a few labels change nothing
that they do not speak of.

The evidence is cross-validated: the labelled rows of each fold are answered behind an adapter that
was fitted without that fold, the held-out ones behind the adapter that is returned, which is fitted
on all folds.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from edge_client.inference import choice
from edge_client.samples.table import FOLDS, covered, known, read_all
from streams.contract.task import Task
from streams.contract.work import PERSONAL, TrainerJob, WorkReply
from streams.learning import learning, optimizers
from streams.learning.input_adapter import InputAdapter

STEPS, RATE = 100, 0.04
ALIGN, ANCHOR = 0.3, 1.0
DRIFTED, MANY, FEW = 1e-3, 3e-3, 1e-2  # PULL: of a sensor that has drifted, else by labels
MANY_LABELS = 128

Statistics = tuple[Tensor, Tensor, Tensor]  # of an input, and the mean and variance it should have


def end_of(job: TrainerJob) -> Callable[[], bool]:
    """Return whether a training must end: its time is over, the agent says so, or it has died.

    The time of a round's training is by the clock, that of the device's own is processor time: it
    lets all other processes go first, and would never end on a machine that has work.
    """
    clock = time.process_time if job.request.run == PERSONAL else time.monotonic
    until, stop, agent = clock() + job.request.time_budget_s, Path(job.stop), os.getppid()
    return lambda: clock() > until or stop.exists() or os.getppid() != agent


class Stopped(Exception):
    """The trainer was asked to stop."""


class Fitter:
    """Fits adapters before one model, on rows (n, channels, samples) with labels (n, label_size),
    NaN where unknown."""

    def __init__(self, task: Task, model: nn.Module, job: TrainerJob) -> None:
        self._task, self._model = task, model.eval().requires_grad_(False)
        self._inputs, self._drifting = job.request.inputs, job.request.drifting
        self._norms = [m for m in model.modules()
                       if isinstance(m, _BatchNorm) and m.running_mean is not None]  # fmt: skip
        self._stops = end_of(job)

    def fit(self, segments: np.ndarray, labels: np.ndarray) -> InputAdapter:
        """Return the adapter; raise Stopped."""
        channels = segments.shape[1]
        weight, bias = torch.eye(channels), torch.zeros(channels)
        identity, rows = weight.clone(), torch.from_numpy(segments)
        labelled = known(labels) & self._several_classes(labels)
        here, told = torch.from_numpy(labelled), torch.from_numpy(labels[labelled])
        pull = DRIFTED if self._drifting else MANY if len(told) >= MANY_LABELS else FEW
        with torch.no_grad():
            plain = self._model(rows)
        move = optimizers.adam([weight.requires_grad_(), bias.requires_grad_()])
        for _ in range(STEPS):
            if self._stops():
                raise Stopped
            outputs, inputs = self._run(weight @ rows + bias[:, None])
            loss = pull * (F.mse_loss(weight, identity, reduction="sum") + bias.square().sum())
            loss = loss + ALIGN * alignment(inputs)
            if len(told):
                losses = learning.loss_per_row(self._task, outputs[here], told)
                counts = learning.class_weights(self._task, told)
                loss = loss + (losses * counts).sum() / counts.sum()
            if not self._drifting and not here.all():
                loss = loss + ANCHOR * self._distance(outputs[~here], plain[~here])
            weight.grad = bias.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            move(RATE)
        return InputAdapter(weight.detach().numpy(), bias.detach().numpy())

    @torch.no_grad()
    def alignment(self, segments: np.ndarray) -> float:
        """Return how far segments are from what the model was trained on."""
        return float(alignment(self._run(torch.from_numpy(segments))[1]))

    def _distance(self, outputs: Tensor, plain: Tensor) -> Tensor:
        if not self._task.classes:
            return F.mse_loss(outputs, plain)
        expected = plain.softmax(1)
        return F.kl_div(outputs.log_softmax(1), expected, reduction="batchmean")

    def _several_classes(self, labels: np.ndarray) -> bool:
        return not self._task.classes or len(np.unique(labels[known(labels), 0])) > 1

    def _run(self, segments: Tensor) -> tuple[Tensor, list[Statistics]]:
        """Return the model's outputs, and what is aligned."""
        found: list[Statistics] = []

        def note(norm: nn.Module, inputs: Sequence[Tensor]) -> None:
            found.append((inputs[0], norm.running_mean, norm.running_var))  # type: ignore[arg-type]

        hooks = [norm.register_forward_pre_hook(note) for norm in self._norms]
        try:
            outputs = self._model(segments)
        finally:
            for hook in hooks:
                hook.remove()
        if not self._norms and self._inputs:
            found.append((segments, *torch.tensor(self._inputs).unbind(1)))  # type: ignore[arg-type]
        return outputs, found


def alignment(inputs: Sequence[Statistics]) -> Tensor:
    """Return the sum over inputs (n, channels, ...) of the mean over channels."""
    total = torch.zeros(())
    for values, mean, variance in inputs:
        over = [0, *range(2, values.dim())]
        of, at = values.var(over, unbiased=False) + 1e-5, values.mean(over)
        total = total + ((at - mean).square() / (variance + 1e-5)).mean()
        total = total + (of.log() - (variance + 1e-5).log()).square().mean()
    return total


class Evidence(NamedTuple):
    """Rows (n,) that have a label, and their outputs behind an adapter that was fitted without
    them, and without any, (n, outputs)."""

    judged: np.ndarray
    behind: np.ndarray
    plain: np.ndarray


def cross_validated(
    task: Task, model: nn.Module, fitter: Fitter, segments: np.ndarray, labels: np.ndarray,
    fold: np.ndarray,
) -> tuple[InputAdapter, Evidence]:  # fmt: skip
    """Return the adapter that is fitted on all folds (n,), and its evidence; raise Stopped."""
    adapter = fitter.fit(segments[fold < FOLDS], labels[fold < FOLDS])
    judged = np.zeros(len(labels), np.bool_)
    behind = np.zeros((len(labels), task.outputs), np.float32)
    for number in range(FOLDS + 1):
        chosen = known(labels) & (fold == number)
        others = (fold < FOLDS) & (fold != number)
        if chosen.any() and others.any():
            left = number < FOLDS
            fitted = fitter.fit(segments[others], labels[others]) if left else adapter
            behind[chosen] = learning.predict(model, fitted.apply(segments[chosen]))
            judged |= chosen
    plain = learning.predict(model, segments[judged]) if judged.any() else behind[:0]
    return adapter, Evidence(judged, behind[judged], plain)


def adapted(
    task: Task, job: TrainerJob, model: nn.Module, most: int | None = None
) -> tuple[WorkReply, bytes]:
    """Return the adapter's tensors with `loss`, `base_loss`, `less_surprise` and `time` of labelled
    rows (n,), each answered behind an adapter that was fitted without it. Metrics: `covered`, the
    share of the rows whose answer behind the adapter is of a class that has labels, and the
    alignment of what is held out, before and behind it. Of the rows at most `most` are used, evenly
    spaced: a step takes them all at once."""
    rows = read_all(Path(job.samples))
    if most is not None and len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    segments, labels, fold = rows["segment"].copy(), rows["label"].copy(), rows["fold"]
    reply = WorkReply(device=job.device, base=job.request.base, samples=len(rows))
    if not (fold < FOLDS).any():
        return reply.replace(error="too-few-samples: all segments are held out"), b""
    fitter = Fitter(task, model, job)
    try:
        adapter, found = cross_validated(task, model, fitter, segments, labels, fold)
    except Stopped:
        return reply.replace(error="stopped: the fit had not ended"), b""
    behind = adapter.apply(segments)
    apart = fold == FOLDS if (fold == FOLDS).any() else fold < FOLDS
    metrics = {
        "covered": covered(task, learning.predict(model, behind), labels[known(labels)]),
        "alignment": fitter.alignment(behind[apart]),
        "base_alignment": fitter.alignment(segments[apart]),
    }
    tensors = {
        **adapter.tensors(),
        **evidence_of(task, found, labels[found.judged]),
        "time": rows["time"][found.judged].copy(),
    }
    return reply.replace(metrics=metrics), safetensors.numpy.save(tensors)


def evidence_of(task: Task, found: Evidence, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return what `choice.compare` reads of labelled rows (n, label_size)."""
    less = (choice.surprises(task, each, labels) for each in (found.plain, found.behind))
    return {
        "loss": choice.losses(task, found.behind, labels),
        "base_loss": choice.losses(task, found.plain, labels),
        "less_surprise": np.subtract(*less),
    }
