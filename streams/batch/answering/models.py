"""The models of a job, loaded from verified artifacts: torch only where a teacher answers."""

from typing import TYPE_CHECKING

from streams.contract.artifact import Artifact
from streams.contract.errors import ArtifactError, UsageError
from streams.contract.task import Task
from streams.learning.onnx_model import OnnxModel
from streams.learning.torch_device import CPU

if TYPE_CHECKING:
    from streams.learning.teacher import Teacher

KINDS = ("model", "teacher")  # of artifacts


def load_teacher(task: Task, artifact: Artifact, device: str = CPU) -> "Teacher":
    """Return a teacher that scores each window in a forward pass of its own, on one thread and on
    `device`; raise ArtifactError if it does not fit the task."""
    try:
        from streams.learning.teacher import pin_threads, teacher_of
    except ImportError as exc:
        raise ArtifactError("not-runnable", f"a teacher needs torch: {exc}") from exc
    pin_threads()
    return teacher_of(task, artifact, artifact.model, rows_per_call=1, device=device)


def check_models(
    task: Task,
    artifact: Artifact,
    weights: bytes | None,
    teacher: Artifact | None,
    device: str = CPU,
) -> None:
    """Raise ArtifactError or UsageError if a model of a job cannot answer; `weights` are those of a
    personal model, `device` is where a teacher runs."""
    if teacher is not None and {artifact.manifest.kind, teacher.manifest.kind} != set(KINDS):
        raise UsageError("--teacher is a teacher's artifact, beside a model that is none")
    if artifact.manifest.kind == "teacher":
        load_teacher(task, artifact, device)
    else:
        OnnxModel(task, artifact, weights)
    if teacher is not None:
        load_teacher(task, teacher, device)
