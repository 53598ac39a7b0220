"""A TorchScript archive becomes a graph of ONNX, once, where it is imported; devices, workers and
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

import io
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from streams.contract.task import OnnxFile, Task
from streams.contract.task.onnx_file import MAX_BYTES
from streams.learning.onnx_session import OnnxSession

MAGIC = b"PK\x03\x04"  # of a zip file, as torch.jit.save writes it
OPSET = 18
TOLERANCE = 1e-3
NAMESPACES = ("aten", "prim")
RUNS = (b"__setstate__", b"torch.classes")
UNKNOWN = ("prim::CallMethod", "prim::CallFunction", "prim::PythonOp", "prim::IgnoredPythonOp")
OUTPUT = "output_{}"


def to_onnx(task: Task, data: bytes, around: OnnxFile) -> bytes:
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
    if not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
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
    return {OUTPUT.format(number): tensor for number, tensor in enumerate(found)}


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
