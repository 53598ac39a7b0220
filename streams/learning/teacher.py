"""The teacher model, which scores whole windows: in the worker, and in a batch job."""

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from torch import nn

from streams.contract.artifact import GRAPH, WEIGHTS, Artifact, unpack
from streams.contract.errors import (
    ArtifactError,
    ProcessorFailed,
    UsageError,
    line_of,
)
from streams.contract.task import Task
from streams.learning.drift_reference import Reference, reference_of
from streams.learning.learning import build_teacher, load_weights
from streams.runtime.trust import load_public_key

ROWS_PER_CALL = 256  # padded segments per forward pass, to stay in the processor's cache

# Before torch 2.8 a failing device raises a RuntimeError, as a failing model does.
ACCELERATOR_ERRORS: tuple[type[Exception], ...] = (
    (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
)
DEVICE_ERRORS: tuple[type[Exception], ...] = (*ACCELERATOR_ERRORS, torch.OutOfMemoryError)


class TeacherFailed(Exception):
    """The teacher cannot score a window; the text is the reason."""


class Teacher:
    """A model in evaluation mode with its version's name and drift reference.

    Each thread has its own copy of the model, because a user's model may keep state during a
    forward pass. The copies are on `device` ("cpu" or "cuda"), and so are the tensors of a pass.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        name: str,
        *,
        reference: Reference | None = None,
        digest: str = "",
        rows_per_call: int = ROWS_PER_CALL,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        self.name = name
        self.reference = reference
        self.digest = digest
        self._task = task
        self._rows = rows_per_call
        self._device = torch.device(device)
        self._pool = ThreadPoolExecutor(threads, "teacher")
        self._models: SimpleQueue[nn.Module] = SimpleQueue()
        try:
            for _ in range(threads - 1):
                self._models.put(copy.deepcopy(model).to(self._device).eval())
            self._models.put(model.to(self._device).eval())
        except DEVICE_ERRORS as exc:
            raise _processor_failed(self._device, exc) from exc

    def score(self, windows: Sequence[np.ndarray]) -> list[np.ndarray | TeacherFailed]:
        """Return outputs (rows, outputs) float32, or the failure, of each window (rows, channels,
        samples).

        Windows of similar length share a forward pass, padded and masked; passes run in parallel on
        the threads. If a pass fails, its windows are scored one by one, so that only the faulty one
        fails. Raises ProcessorFailed where the device fails, or has no memory for one window: no
        window is at fault.
        """
        results: list[np.ndarray | TeacherFailed] = [TeacherFailed("not scored")] * len(windows)
        by_length = sorted(range(len(windows)), key=lambda i: len(windows[i]))
        groups = self._groups(windows, by_length)
        scored = self._pool.map(self._score_group, [[windows[i] for i in g] for g in groups])
        for group, outputs in zip(groups, scored, strict=True):
            for i, output in zip(group, outputs, strict=True):
                results[i] = output
        return results

    def _groups(self, windows: Sequence[np.ndarray], order: list[int]) -> list[list[int]]:
        groups: list[list[int]] = []
        for i in order:
            if groups and (len(groups[-1]) + 1) * len(windows[i]) <= self._rows:
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups

    def _score_group(self, windows: list[np.ndarray]) -> list[np.ndarray | TeacherFailed]:
        try:
            return list(self._forward(windows))
        except ACCELERATOR_ERRORS as exc:  # each later pass of the process would fail too
            raise _processor_failed(self._device, exc) from exc
        except Exception as exc:  # a user's model may raise anything
            if len(windows) == 1:
                if isinstance(exc, torch.OutOfMemoryError):
                    raise _processor_failed(self._device, exc) from exc
                return [TeacherFailed(f"{type(exc).__name__}: {line_of(exc)}"[:300])]
        return [result for window in windows for result in self._score_group([window])]

    def _forward(self, windows: list[np.ndarray]) -> list[np.ndarray]:
        longest = max(len(window) for window in windows)
        padded = np.zeros((len(windows), longest, *self._task.segment_shape), np.float32)
        mask = np.zeros((len(windows), longest), bool)
        for i, window in enumerate(windows):
            padded[i, : len(window)] = window
            mask[i, : len(window)] = True
        outputs = self._run(torch.from_numpy(padded), torch.from_numpy(mask)).numpy()
        if outputs.shape != (len(windows), longest, self._task.outputs):
            raise TeacherFailed(f"outputs have shape {outputs.shape} for {padded.shape}")
        if not np.isfinite(outputs[mask]).all():
            raise TeacherFailed("outputs are not finite")
        return [outputs[i, : len(w)].astype(np.float32) for i, w in enumerate(windows)]

    @torch.no_grad()
    def _run(self, padded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        model = self._models.get()
        try:
            outputs: torch.Tensor = model(padded.to(self._device), mask.to(self._device))
        finally:
            self._models.put(model)
        return outputs.cpu()


def load_teacher(
    task: Task, path: Path, trusted: Sequence[Path], threads: int = 1, device: str = "cpu"
) -> Teacher:
    """Return the teacher of the artifact at `path`; see make_teacher."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise UsageError(f"cannot read the teacher {path}: {exc}") from exc
    keys = [load_public_key(key) for key in trusted]
    return make_teacher(task, data, keys, str(path), threads, device)


def make_teacher(
    task: Task,
    data: bytes,
    trusted: Sequence[Ed25519PublicKey],
    where: str,
    threads: int = 1,
    device: str = "cpu",
) -> Teacher:
    """Return the teacher of an artifact, after verifying it; it scores on `threads` threads, with
    forward passes on `device`.

    Raises ArtifactError if the artifact must not be run or cannot score an empty window.
    """
    artifact = unpack(data, trusted, task=task.name, task_version=task.version, kind="teacher")
    return teacher_of(task, artifact, where, threads=threads, device=device)


def teacher_of(
    task: Task,
    artifact: Artifact,
    where: str,
    *,
    threads: int = 1,
    rows_per_call: int = ROWS_PER_CALL,
    device: str = "cpu",
) -> Teacher:
    """Return the teacher of a verified artifact; raise ArtifactError if it does not fit the task or
    cannot score an empty window."""
    if WEIGHTS not in artifact.files:
        raise ArtifactError("files", f"the teacher {where} has no {WEIGHTS}")
    try:
        model = build_teacher(task, artifact.files.get(GRAPH))
        model = load_weights(model, artifact.files[WEIGHTS])
    except Exception as exc:  # from safetensors, torch or the task's code
        text = f"{type(exc).__name__}: {line_of(exc)}"
        raise ArtifactError(
            "weights", f"the teacher {where} does not fit the task: {text}"
        ) from exc
    teacher = Teacher(
        task,
        model,
        artifact.model,
        reference=reference_of(artifact, f"the teacher {where}"),
        digest=artifact.digest,
        rows_per_call=rows_per_call,
        threads=threads,
        device=device,
    )
    probe = teacher.score([np.zeros((2, *task.segment_shape), np.float32)])[0]
    if isinstance(probe, TeacherFailed):
        raise ArtifactError("self-test", f"the teacher {where} cannot score a window: {probe}")
    return teacher


def _processor_failed(device: torch.device, exc: Exception) -> ProcessorFailed:
    return ProcessorFailed(
        f"the teacher's device {device} failed: {line_of(exc)}: start again, or use the CPU"
    )


def pin_threads() -> None:
    """Limit torch to one thread per forward pass: the Teacher runs passes in parallel."""
    torch.set_num_threads(1)
