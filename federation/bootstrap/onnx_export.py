"""The device model as an ONNX graph whose initializers carry the state dict's names.

A device takes new weights into the graph by name (`SessionOptions.add_initializer`), so the graph
is exported once per task version and any later weights fit it. Input "segments" (batch, channels,
samples), output "outputs" (batch, outputs); the batch axis is free.
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
    """Export `model` and prove that it answers as torch does; TaskError says what is in the way."""
    model = model.eval()
    try:
        graph = _export(task, model)
    except Exception as exc:  # the exporter raises whatever its passes raise
        text = (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
        raise TaskError(
            f"task {task.name!r}: build_model cannot be exported to ONNX ({text}): "
            "use layers that ONNX has"
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
        raise TypeError("the exporter gave nothing")
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns of its own internals; neither is for a user."""
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
    """Every floating-point weight has to be an initializer by its own name, or a device could not
    replace it. Counters (batch norm's) play no part in inference and may be left out."""
    names = {tensor.name for tensor in graph.graph.initializer}
    state = model.state_dict()
    lost = [name for name, t in state.items() if t.is_floating_point() and name not in names]
    if lost:
        raise TaskError(
            f"task {task.name!r}: build_model exports to ONNX, but {lost[0]!r} is no initializer "
            "of the graph, so a device could not take new weights: write the layer in plain form"
        )


def _check_answers(task: Task, model: nn.Module, graph: bytes) -> None:
    """Against torch with the exported weights, and with others taken in by name."""
    generator = np.random.default_rng(0)
    probe = generator.standard_normal((5, *task.segment_shape), dtype=np.float32)
    if not np.allclose(run_graph(graph, probe), predict(model, probe), atol=TOLERANCE):
        raise TaskError(f"task {task.name!r}: the ONNX graph answers unlike torch")
    other = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    for name, value in other.items():
        if value.dtype.kind == "f":
            other[name] = np.asarray(value * np.float32(1.25), dtype=value.dtype)
    original = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in other.items()})
    expected = predict(model, probe)
    model.load_state_dict(original)
    if not np.allclose(run_graph(graph, probe, other), expected, rtol=1e-3, atol=TOLERANCE):
        raise TaskError(f"task {task.name!r}: the ONNX graph does not follow new weights")
