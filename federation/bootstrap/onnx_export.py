"""Export of the device model as an ONNX graph whose initializers have the state dict's names.

Devices insert weights into the graph by name (`SessionOptions.add_external_initializers`), so the
graph is exported once per task version, without values, and all weights fit it. Input "segments"
(batch, channels, samples), output "outputs" (batch, outputs); the batch axis is dynamic.

A TorchScript archive becomes a graph of ONNX, once, where it is imported; devices, workers and
batch jobs get the graph.

    1 read the archive's code, without torch; write what was read to another archive in memory, so
      that torch reads the same
    2 torch.jit.load: compiles the code, runs none of it
    3 look at each operator of `forward`
    4 run it on segments, export it, compare the answers

TorchScript is not read by pickle: torch's own reader makes tensors, and objects of the classes in
the archive's code. Its operators could read and write files. So what would run in step 2 or beside
`forward` is refused (`__setstate__`, torch's own classes, hooks); in step 3 operators that take a
file's name, those of other libraries, and calls of what is not known before it runs. What remains
can take time and memory, and meet defects of torch's operators.
"""

import contextlib
import hashlib
import io
import logging
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from federation.evaluation.quantization import INPUT, OUTPUT, run_graph
from streams.contract.artifact import WEIGHTS
from streams.contract.errors import TaskError
from streams.contract.task import OnnxFile, Task
from streams.contract.task.channels import example
from streams.contract.task.onnx_file import MAX_BYTES
from streams.learning.learning import OnnxModule, predict
from streams.learning.onnx_model import OnnxSession

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
    if data.startswith(TORCHSCRIPT):
        try:
            with _quiet():
                data = of_torchscript(task, data, file)
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
    found = run_graph(graph, probe, other)
    if not np.allclose(found, predict(model, probe), atol=TOLERANCE, equal_nan=True):
        raise TaskError(f"task {task.name!r}: the ONNX graph and torch give different answers")
    for name, value in other.items():
        if value.dtype.kind == "f":
            other[name] = np.asarray(value * np.float32(1.25), dtype=value.dtype)
    original = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in other.items()})
    expected = predict(model, probe)
    model.load_state_dict(original)
    found = run_graph(graph, probe, other)
    if not np.allclose(found, expected, rtol=1e-3, atol=TOLERANCE, equal_nan=True):
        raise TaskError(f"task {task.name!r}: the ONNX graph does not use new weights")


TORCHSCRIPT = b"PK\x03\x04"  # of a zip file, as torch.jit.save writes it
ANSWERS = 1e-3
NAMESPACES = ("aten", "prim")
RUNS = (b"__setstate__", b"torch.classes")
UNKNOWN = ("prim::CallMethod", "prim::CallFunction", "prim::PythonOp", "prim::IgnoredPythonOp")
NUMBERED = "output_{}"


def of_torchscript(task: Task, data: bytes, around: OnnxFile) -> bytes:
    """Return the graph of an archive, which gives the same answers; raise ValueError, or whatever
    torch raises, for one that is not sound."""
    archive = io.BytesIO(_checked(data))
    script = torch.jit.load(archive, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    if script._c._get_forward_hooks() or script._c._get_forward_pre_hooks():
        raise ValueError("it has hooks")
    for node in _nodes(script.inlined_graph):
        _check_operator(node)
    generator = np.random.default_rng(0)
    probe = generator.standard_normal((5, *task.segment_shape), dtype=np.float32)
    try:
        graph, rows = _exported(script, around, probe[:2]), len(probe)
    except Exception:  # a module that was traced with one row may answer one alone
        graph, rows = _exported(script, around, probe[:1]), 1
    parts = [_answers(script, around, probe[at : at + rows]) for at in range(0, len(probe), rows)]
    found = OnnxSession(graph, {}, around).run(probe)
    expected = np.concatenate(parts)
    if not np.allclose(found, expected, rtol=ANSWERS, atol=ANSWERS, equal_nan=True):
        raise ValueError("its ONNX graph and TorchScript give different answers")
    return graph


def _checked(data: bytes) -> bytes:
    """Return the archive without what debuggers read of it."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(made, "w") as copy:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if sum(entry.file_size for entry in entries.values()) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        if not any("/code/" in name for name in entries):
            raise ValueError("there is no code in it; weights are for Task.first_model")
        for name in (name for name in entries if not name.endswith(".debug_pkl")):
            content = archive.read(name)
            for word in RUNS:
                if word in content:
                    raise ValueError(f"it has what runs when it is read: {word.decode()}")
            copy.writestr(name, content)
    return made.getvalue()


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _check_operator(node: Any) -> None:
    kind = node.kind()
    graphs = any(node.kindOf(name) in ("g", "gs") for name in node.attributeNames())
    schemas = torch._C._jit_get_schemas_for_operator(kind)
    named = any(each.name == "filename" for schema in schemas for each in schema.arguments)
    if kind.partition("::")[0] not in NAMESPACES or kind in UNKNOWN or graphs or named:
        raise ValueError(f"the operator {kind} is not allowed")


def _inputs(script: Any, around: OnnxFile, segments: np.ndarray) -> dict[str, torch.Tensor]:
    """Return what `forward` takes of segments, by name, in its order."""
    names = [each.name for each in script.forward.schema.arguments[1:]]
    given = around.inputs(segments, names)
    return {name: torch.from_numpy(np.asarray(given[name], order="C")) for name in names}


@torch.no_grad()
def _outputs(script: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = script(**inputs)
    found = found if isinstance(found, tuple | list) else (found,)
    return {NUMBERED.format(number): tensor for number, tensor in enumerate(found)}


def _answers(script: Any, around: OnnxFile, segments: np.ndarray) -> np.ndarray:
    outputs = _outputs(script, _inputs(script, around, segments))
    return around.answers({name: tensor.numpy() for name, tensor in outputs.items()})


def _exported(script: Any, around: OnnxFile, segments: np.ndarray) -> bytes:
    """Return the graph, for any number of rows if it is exported with more than one."""
    rows, made, inputs = len(segments), io.BytesIO(), _inputs(script, around, segments)
    outputs = _outputs(script, inputs)
    batched = {name: {0: "rows"} for name, tensor in {**inputs, **outputs}.items()
               if rows > 1 and tensor.ndim and len(tensor) == rows}  # fmt: skip
    torch.onnx.export(
        script, tuple(inputs.values()), made, dynamo=False,  # type: ignore[arg-type]
        opset_version=OPSET, input_names=list(inputs), output_names=list(outputs),
        dynamic_axes=batched,
    )  # fmt: skip
    return made.getvalue()
