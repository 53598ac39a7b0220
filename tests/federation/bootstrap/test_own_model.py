"""Models that a user brings: files of weights, and graphs."""

import hashlib
import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper
from torch import nn

from compose.preflight import check_task
from federation.bootstrap.first_models import few_threads, loaded, read_weights
from federation.bootstrap.initial_model import prepare
from federation.bootstrap.onnx_export import read_graph
from federation.registry.registry import Registry
from streams.contract.artifact import WEIGHTS
from streams.contract.errors import TaskError, UsageError
from streams.contract.task import Device, OnnxFile, Reading, Segment, Task
from streams.learning.learning import PerSegment, predict, to_safetensors
from streams.learning.onnx_model import OnnxModel
from streams.learning.teacher import teacher_of
from tests.rig.made_up.model_files import FORMS, TINY, Runs, few, jit
from tests.rig.unwrap import unwrap

# --- files of weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "torch", "wrapped", "half", "no counters"])
def test_a_state_dict_is_read_in_the_forms_that_people_save(
    tiny: Task, tmp_path: Path, form: str
) -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4))
    state = {n: t for n, t in model.state_dict().items() if "num" not in n or form != "no counters"}
    path = tmp_path / ("w.safetensors" if form in ("safetensors", "no counters") else "w.pt")
    if form == "half":
        state = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    if path.suffix == ".pt":
        torch.save({"epoch": 3, "state_dict": state} if form == "wrapped" else state, path)
    else:
        safetensors.torch.save_file(state, path)
    tensors, source = read_weights(path)
    found = loaded(nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)), tensors, path)
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=1e-3, rtol=1e-3)
    assert source.startswith(f"{path.name} sha256:")


def test_what_is_no_state_dict_of_this_model_is_one_line(tiny: Task, tmp_path: Path) -> None:
    state = tiny.build_model().state_dict()
    bad = dict(state)
    bad["0.weight"] = torch.full_like(state["0.weight"], torch.nan)
    whole = io.BytesIO()
    torch.save(state, whole)
    cases: dict[str, object] = {
        "lacks 0.weight": {n: t for n, t in state.items() if n != "0.weight"},
        "has also head.weight": {**state, "head.weight": torch.zeros(3)},
        "has 0.weight (1, 2), not": {**state, "0.weight": torch.zeros(1, 2)},
        "not finite": bad,
        "holds list, not a state dict": [1, 2],
        "was not run: save model.state_dict()": Runs(),
        "goes into build_model=OnnxFile": tiny.build_model(),
        "it is not whole": whole.getvalue()[:500],
    }
    for text, value in cases.items():
        path = tmp_path / "w.pt"
        if isinstance(value, Runs):
            path.write_bytes(pickle.dumps(value))
        elif isinstance(value, bytes):
            path.write_bytes(value)
        elif isinstance(value, nn.Module):
            jit(value, path)
        else:
            torch.save(value, path)
        with pytest.raises(UsageError, match=r"w\.pt") as raised:
            loaded(tiny.build_model(), read_weights(path)[0], path)
        assert text in str(raised.value)
        assert "\n" not in str(raised.value)
        assert "weights_only" not in str(raised.value)
    assert not Path("/tmp/tidewheel-was-run").exists()


def test_a_first_model_that_cannot_be_had_is_named_by_check_and_prepare(
    tiny: Task, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    path, registry = tmp_path / "w.safetensors", tmp_path / "registry"
    task = replace(tiny, first_model=path)
    kept = Registry(registry, task.name, task.version, [key.public_key()])
    for text in ("cannot read", "has no weights that can be read"):
        (found,) = [f for f in check_task(task).findings if f.level == "error"]
        assert found.where == "first_model"
        assert text in found.text
        with pytest.raises(UsageError, match=text):
            prepare(TINY, task, kept, key, tmp_path / "cache")
        path.write_bytes(b"garbage")


def test_the_first_model_has_the_weights_of_a_file_and_pilots_need_no_labels(
    tiny: Task, key: Ed25519PrivateKey, tmp_path: Path, better: nn.Module
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(to_safetensors(better.state_dict()))

    def unlabelled(device: str) -> list[Reading]:
        known = device.startswith("held")
        return [r if known else r._replace(label=None) for r in tiny.readings(device)]

    task = replace(few(tiny), first_model=path, build_teacher=None, readings=unlabelled)
    found = Registry(tmp_path / "registry", task.name, task.version, [key.public_key()])
    report = unwrap(prepare(TINY, task, found, key, tmp_path / "cache"))
    serving = unwrap(found.serving())
    for name, value in safetensors.torch.load(serving.files[WEIGHTS]).items():
        torch.testing.assert_close(value, better.state_dict()[name])
    assert serving.manifest.source.startswith("w.safetensors sha256:")
    assert report.model_held_out > 0.8
    teacher = teacher_of(task, unwrap(found.teacher()), "teacher")
    rows = np.random.default_rng(0).normal(0, 1, (3, *task.segment_shape)).astype(np.float32)
    np.testing.assert_allclose(teacher.score([rows])[0], predict(better, rows), atol=1e-4)


# --- files of ONNX --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_graph_answers_on_device_and_as_teacher_as_its_module_does(
    tiny: Task, key: Ed25519PrivateKey, tmp_path: Path, better: nn.Module, form: str
) -> None:
    path = FORMS[form](tiny, better, tmp_path / "model.file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    file = OnnxFile(path, before=lambda x: x * 2.0, after=lambda found: next(iter(found.values())))
    task = replace(few(tiny), build_model=file, build_teacher=OnnxFile(path))
    registry = Registry(tmp_path / "registry", task.name, task.version, [key.public_key()])
    report = unwrap(prepare(TINY, task, registry, key, tmp_path / "cache"))
    path.unlink()  # what is run is in the artifacts
    serving, taught = unwrap(registry.serving()), unwrap(registry.teacher())
    assert serving.manifest.source == f"model.file sha256:{digest}"
    rows = np.random.default_rng(1).normal(0, 1, (7, *task.segment_shape)).astype(np.float32)
    np.testing.assert_allclose(
        OnnxModel(task, serving).run(rows), predict(better, 2 * rows), atol=1e-4
    )
    scored = teacher_of(task, taught, "teacher", threads=2).score([rows, rows[:1]])
    for window, answers in zip((rows, rows[:1]), scored, strict=True):
        np.testing.assert_allclose(answers, predict(better, window), atol=1e-4)
    assert not task.learns
    assert report.teacher_held_out > 0.8


def test_a_foreign_model_of_a_package_answers_by_names(tmp_path: Path) -> None:
    """onnxruntime ships a classifier of irises, of scikit-learn's making: a batch of three, two
    numbers a flower, and a list of dictionaries as its answer."""
    path = Path(onnxruntime.__file__).parent / "datasets" / "logreg_iris.onnx"

    def after(found: dict[str, list[dict[int, float]]]) -> np.ndarray:
        return np.array([[row[i] for i in range(3)] for row in found["probabilities"]], np.float32)

    iris = OnnxFile(path, lambda x: {"float_input": x[:, :, 0]}, after)  # type: ignore[arg-type]
    task = Task(
        name="iris", version=1, channels=("length", "width"), rate_hz=None,
        segment=Segment(samples=1, hop=1), classes=("a", "b", "c"), build_model=iris,
        readings=lambda _device: [], devices=lambda: [Device("d0", "fleet")],
    )  # fmt: skip
    model = read_graph(task, iris)
    flowers = np.random.default_rng(0).uniform(0, 7, (8, 2, 1)).astype(np.float32)
    found = predict(model, flowers)
    session = onnxruntime.InferenceSession(path)
    for at in (0, 3, 5):
        [rows] = session.run(["probabilities"], {"float_input": flowers[at : at + 3, :, 0]})
        np.testing.assert_allclose(found[at : at + 3], [[r[i] for i in range(3)] for r in rows])


def graph_of(*nodes: onnx.NodeProto, domain: str = "") -> onnx.ModelProto:
    shape = ["batch", 2, 20]
    inside = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(inside, opset_imports=opsets, ir_version=9)


def outside_tensor() -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def outside(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[0].attribute.append(helper.make_attribute("value", outside_tensor()))
    return model


def sparse(model: onnx.ModelProto) -> onnx.ModelProto:
    found = model.graph.sparse_initializer.add()
    found.values.CopyFrom(outside_tensor())
    return model


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"no graph", "is no ONNX graph, nor TorchScript"),
        (graph_of(helper.make_node("Relu", ["x"], ["y"])), r"answers \(2, 2, 20\) to segments"),
        (graph_of(helper.make_node("Own", ["x"], ["y"], domain="org.own"), domain="org.own"),
         "needs operators of 'org.own'"),
        (outside(graph_of(helper.make_node("Constant", [], ["y"]))),
         "weights in other files"),
        (sparse(graph_of(helper.make_node("Relu", ["x"], ["y"]))), "weights in other files"),
    ],
    ids=["bytes", "shape", "operator", "external", "sparse"],
)  # fmt: skip
def test_a_graph_that_devices_could_not_run_is_refused(
    tiny: Task, tmp_path: Path, data: bytes | onnx.ModelProto, text: str
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    with pytest.raises(TaskError, match=text):
        read_graph(tiny, OnnxFile(path))


@pytest.mark.parametrize(
    ("around", "text"),
    [
        ({"before": lambda rows: rows[:, 7]}, "`before` fails: IndexError: "),
        ({"before": lambda rows: {"x": rows}}, "its inputs are segments; .* now there is x"),
        (
            {"after": lambda found: found["logits"]},
            "`after` fails: KeyError: 'logits'; the outputs ",
        ),
    ],
    ids=["before", "names", "after"],
)
def test_a_function_of_the_task_that_fails_is_named_with_what_the_graph_has(
    tiny: Task, better: nn.Module, tmp_path: Path, around: dict[str, Any], text: str
) -> None:
    with pytest.raises(TaskError, match=text):
        read_graph(tiny, OnnxFile(FORMS["onnx"](tiny, better, tmp_path / "m.onnx"), **around))


def test_models_of_small_layers_train_on_one_thread_and_others_leave_one_free(tiny: Task) -> None:
    """A convolution over a long input has few parameters and much work, an embedding is the other
    way round."""
    long = nn.Sequential(
        nn.Upsample(scale_factor=4000), nn.Conv1d(2, 16, 9), nn.AdaptiveMaxPool1d(1), nn.Flatten()
    )
    wide = nn.Sequential(nn.Flatten(), nn.LazyLinear(4096), nn.Linear(4096, 4096))
    table = nn.Sequential(PickFirst(), nn.Embedding(100_000, 64))
    torch.set_num_threads(4)
    try:
        for model, count in ((tiny.build_model(), 1), (long, 3), (wide, 3), (table, 1)):
            with few_threads(replace(tiny, build_model=lambda model=model: model)):
                assert torch.get_num_threads() == count
            with few_threads(replace(tiny, build_teacher=lambda model=model: PerSegment(model))):
                assert torch.get_num_threads() == count
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(1)


class PickFirst(nn.Module):
    """The first number of a segment, as an index."""

    def forward(self, segments: torch.Tensor) -> torch.Tensor:
        return segments[:, 0, 0].long()
