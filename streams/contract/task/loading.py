"""Importing a task file, and checking its models."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from streams.contract.errors import TaskError, line_of, own_line
from streams.contract.task.description import Task
from streams.contract.task.onnx_file import OnnxFile


def load_task(reference: str) -> Task:
    """Import the task named by `path/to/file.py:attribute` or `package.module:attribute`.

    Raises TaskError that says what is wrong with the reference, the file or the attribute.

    >>> from tidewheel import load_task
    >>> load_task("streams.tasks.har:task").segment_shape
    (6, 128)
    """
    location, colon, attribute = reference.rpartition(":")
    if not colon or not location or not attribute:
        raise TaskError(f"task {reference!r}: write it as path/to/file.py:task")
    module = _import(location, reference)
    try:
        task = getattr(module, attribute)
    except AttributeError:
        raise TaskError(f"task {reference!r}: {location} has no attribute {attribute!r}") from None
    if not isinstance(task, Task):
        kind = type(task).__name__
        raise TaskError(f"task {reference!r}: {attribute} is a {kind}, not a Task")
    return task


def absolute_reference(reference: str) -> str:
    """Return the same task named so that processes in other folders find it."""
    location, colon, attribute = reference.rpartition(":")
    path = Path(location)
    return f"{path.resolve()}:{attribute}" if colon and path.suffix == ".py" else reference


def _import(location: str, reference: str) -> object:
    path = Path(location)
    try:
        if path.suffix != ".py":
            return importlib.import_module(location)
        if not path.is_file():
            raise TaskError(f"task {reference!r}: there is no file {path}")
        name = f"tidewheel_task_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise TaskError(f"task {reference!r}: {path} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before it runs: dataclasses and pickles look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except TaskError:
        raise
    except Exception as exc:
        text = f"{type(exc).__name__}: {line_of(exc)}"
        raise TaskError(f"task {reference!r}: importing {location} failed: {text}") from exc


def check_model(task: Task) -> None:
    """Build the task's models and run each once; TaskError names a wrong shape. Needs torch. Files
    of ONNX are checked where they are signed."""
    import torch

    channels, samples = task.segment_shape
    probes: list[tuple[str, Callable[[], torch.nn.Module], tuple[int, ...], tuple[int, ...]]] = []
    if not isinstance(task.build_model, OnnxFile):
        one = (2, channels, samples)
        probes.append(("build_model", task.build_model, one, (2, task.outputs)))
    if task.build_teacher is not None and not isinstance(task.build_teacher, OnnxFile):
        window = (2, 3, channels, samples)
        probes.append(("build_teacher", task.build_teacher, window, (2, 3, task.outputs)))
    for name, build, given, expected in probes:
        try:
            with torch.no_grad():
                model = build().eval()
                inputs = [torch.zeros(given)]
                if name == "build_teacher":
                    inputs.append(torch.ones(given[:2], dtype=torch.bool))
                shape = tuple(model(*inputs).shape)
        except Exception as exc:
            text = f"{name} fails on a {given} input: {type(exc).__name__}: {line_of(exc)}"
            raise TaskError(f"task {task.name!r}: {text}{own_line(exc)}", name) from exc
        if shape != expected:
            raise TaskError(
                f"task {task.name!r}: {name} gives {shape} for a {given} input; "
                f"it must give {expected}",
                name,
            )
    _check_named_modules(task)


def _check_named_modules(task: Task) -> None:
    """Each module of train_only and shared holds parameters, and some are both trained and shared
    where both are given."""
    training = task.training
    if isinstance(task.build_model, OnnxFile) or not (training.train_only or training.shared):
        return
    names = [name for name, _ in task.build_model().named_parameters()]
    found: dict[str, set[str]] = {}
    for setting in ("train_only", "shared"):
        modules: tuple[str, ...] = getattr(training, setting)
        for module in modules:
            if not any(name.startswith(f"{module}.") for name in names):
                known = ", ".join(sorted({name.partition(".")[0] for name in names}))
                raise TaskError(
                    f"task {task.name!r}: training.{setting} names {module!r}, in which there is "
                    f"nothing to learn; the model's modules are {known}",
                    f"training.{setting}",
                )
        found[setting] = {n for n in names if any(n.startswith(f"{m}.") for m in modules)}
    if training.train_only and training.shared and not found["train_only"] & found["shared"]:
        raise TaskError(
            f"task {task.name!r}: nothing that training.train_only trains is in training.shared",
            "training.shared",
        )
