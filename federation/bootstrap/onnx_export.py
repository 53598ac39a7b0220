"""Export of the device model as an ONNX graph whose initializers have the state dict's names.

Devices insert new weights into the graph by name (`SessionOptions.add_initializer`), so the graph
is exported once per task version and later weights fit it. Input "segments" (batch, channels,
samples), output "outputs" (batch, outputs); the batch axis is dynamic.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from torch import nn

from federation.evaluation.onnx_runner import INPUT, OUTPUT, run_graph
from streams.contract.errors import TaskError
from streams.contract.task import Task
from streams.learning.learning import predict

TOLERANCE = 1e-4
OPSET = 18


def export_graph(task: Task, model: nn.Module) -> bytes:
    """Return the ONNX graph of `model`, checked against torch; raise TaskError if it cannot be
    exported."""
    model = model.eval()
    try:
        graph = _export(task, model)
    except Exception as exc:  # the exporter raises whatever its passes raise
        text = (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
        raise TaskError(
            f"task {task.name!r}: build_model cannot be exported to ONNX ({text}): "
            "use layers that ONNX supports"
        ) from exc
    _check_names(task, model, graph)
    data = bytes(graph.SerializeToString())
    _check_answers(task, model, data)
    return data


def _export(task: Task, model: nn.Module) -> onnx.ModelProto:
    example = torch.zeros(2, *task.segment_shape)
    with _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            optimize=False,  # folding would rename or merge the weights
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise TypeError("the exporter returned nothing")
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's progress output and its warnings about its own internals."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_names(task: Task, model: nn.Module, graph: onnx.ModelProto) -> None:
    """Raise TaskError unless every floating-point weight is an initializer of the same name, so
    that devices can replace it. Batch norm counters are not used in inference and may be missing.
    """
    names = {tensor.name for tensor in graph.graph.initializer}
    state = model.state_dict()
    lost = [name for name, t in state.items() if t.is_floating_point() and name not in names]
    if lost:
        raise TaskError(
            f"task {task.name!r}: build_model exports to ONNX, but {lost[0]!r} is not an "
            "initializer of the graph, so devices cannot replace its weights: use a plain layer"
        )


def _check_answers(task: Task, model: nn.Module, graph: bytes) -> None:
    """Raise TaskError unless the graph answers as torch, with the exported weights and with other
    ones."""
    generator = np.random.default_rng(0)
    probe = generator.standard_normal((5, *task.segment_shape), dtype=np.float32)
    if not np.allclose(run_graph(graph, probe), predict(model, probe), atol=TOLERANCE):
        raise TaskError(f"task {task.name!r}: the ONNX graph and torch give different answers")
    other = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    for name, value in other.items():
        if value.dtype.kind == "f":
            other[name] = np.asarray(value * np.float32(1.25), dtype=value.dtype)
    original = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in other.items()})
    expected = predict(model, probe)
    model.load_state_dict(original)
    if not np.allclose(run_graph(graph, probe, other), expected, rtol=1e-3, atol=TOLERANCE):
        raise TaskError(f"task {task.name!r}: the ONNX graph does not use new weights")
