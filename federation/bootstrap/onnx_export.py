"""Export of the device model as an ONNX graph whose initializers have the state dict's names.

Devices insert weights into the graph by name (`SessionOptions.add_external_initializers`), so the
graph is exported once per task version, without values, and all weights fit it. Input "segments"
(batch, channels, samples), output "outputs" (batch, outputs); the batch axis is dynamic.
"""

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
import torch
from torch import nn

from federation.bootstrap import torchscript
from federation.evaluation.onnx_runner import INPUT, OUTPUT, run_graph
from streams.contract.artifact import WEIGHTS
from streams.contract.errors import TaskError
from streams.contract.task import OnnxFile, Task
from streams.contract.task.channels import example
from streams.learning.learning import predict
from streams.learning.onnx_module import OnnxModule

DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}  # of operators that onnxruntime has
TOLERANCE = 1e-4
OPSET = 18


def export_graph(task: Task, model: nn.Module) -> bytes:
    """Return the ONNX graph of `model`, checked against torch; raise TaskError if it cannot be
    exported. Of a file of ONNX it is that file."""
    if isinstance(model, OnnxModule):
        return model.graph
    model = model.eval()
    try:
        graph = _export(task, model)
    except Exception as exc:  # the exporter raises whatever its passes raise
        raise TaskError(
            f"task {task.name!r}: build_model cannot be exported to ONNX ({_line(exc)}): "
            "use layers that ONNX supports"
        ) from exc
    _check_names(task, model, graph)
    _empty(graph, model.state_dict())
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


def read_graph(task: Task, file: OnnxFile) -> OnnxModule:
    """Return the model of a file of ONNX or TorchScript; raise TaskError unless the graph has all
    that it needs in itself and answers segments of the task. Nothing runs before the first has been
    seen."""
    data, where = file.read(), f"task {task.name!r}: {file.path}"
    digest = hashlib.sha256(data).hexdigest()
    if data.startswith(torchscript.MAGIC):
        try:
            with _quiet():
                data = torchscript.to_onnx(task, data, file)
        except Exception as exc:  # zip's, torch's, the exporter's, or of the task's functions
            raise TaskError(f"{where} is no TorchScript that can be used: {_line(exc)}") from exc
    try:
        found = onnx.load_from_string(data)
        tensors = list(_tensors(found))
    except Exception as exc:  # protobuf's own
        raise TaskError(f"{where} is no ONNX graph, nor TorchScript: {_line(exc)}") from exc
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in tensors):
        raise TaskError(
            f"{where} has weights in other files: save it as one file, by "
            "torch.onnx.export(..., external_data=False) or onnx.save(onnx.load(FILE), ONE_FILE)"
        )
    if unknown := {each.domain for each in found.opset_import} - DOMAINS:
        raise TaskError(f"{where} needs operators of {min(unknown)!r}, which devices do not have")
    probe = torch.zeros(2, *task.segment_shape)
    try:
        onnx.checker.check_model(found)
        model = OnnxModule(data, file, digest)
        shape = tuple(model(probe).shape)
    except Exception as exc:  # the checker's, onnxruntime's, or of the task's functions
        raise TaskError(f"{where} fails on segments {tuple(probe.shape)}: {_line(exc)}") from exc
    if shape != (2, task.outputs):
        raise TaskError(
            f"{where} answers {shape} to segments {tuple(probe.shape)}, the task has "
            f"{task.outputs} outputs: make them fit by OnnxFile's `before` and `after`"
        )
    return model


def _tensors(found: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of a graph, of the graphs in its nodes, and of its functions."""
    graphs, nodes = [found.graph], [node for f in found.functions for node in f.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            yield from _dense(graph.sparse_initializer)
            nodes += graph.node
        while nodes:
            for attribute in nodes.pop().attribute:
                yield from (attribute.t, *attribute.tensors)
                yield from _dense((attribute.sparse_tensor, *attribute.sparse_tensors))
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs


def _dense(found: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for each in found:
        yield from (each.values, each.indices)


def _line(exc: Exception) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]


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


def _empty(graph: onnx.ModelProto, names: Iterable[str]) -> None:
    """Take the values of the named initializers out of the graph."""
    for tensor in graph.graph.initializer:
        if tensor.name in set(names):
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=WEIGHTS)


def _check_answers(task: Task, model: nn.Module, graph: bytes) -> None:
    """Raise TaskError unless the graph answers as torch, with the exported weights and with other
    ones."""
    probe = example(task.channels, 5, task.segment.samples)
    other = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    if not np.allclose(run_graph(graph, probe, other), predict(model, probe), atol=TOLERANCE):
        raise TaskError(f"task {task.name!r}: the ONNX graph and torch give different answers")
    for name, value in other.items():
        if value.dtype.kind == "f":
            other[name] = np.asarray(value * np.float32(1.25), dtype=value.dtype)
    original = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in other.items()})
    expected = predict(model, probe)
    model.load_state_dict(original)
    if not np.allclose(run_graph(graph, probe, other), expected, rtol=1e-3, atol=TOLERANCE):
        raise TaskError(f"task {task.name!r}: the ONNX graph does not use new weights")
