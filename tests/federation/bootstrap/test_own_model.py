"""Models that a user brings: files of weights, ONNX graphs, and imports into a fleet that runs."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
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

from federation.bootstrap.candidate_import import import_candidate
from federation.bootstrap.initial_model import prepare
from federation.bootstrap.onnx_export import export_graph, read_graph
from federation.bootstrap.teacher import replace_teacher
from federation.bootstrap.weights_file import loaded, read_weights
from federation.evaluation.quantization import complete
from federation.registry.registry import Registry
from streams.contract.artifact import GRAPH, WEIGHTS
from streams.contract.errors import TaskError, UsageError
from streams.contract.task import Device, OnnxFile, Reading, Segment, Task
from streams.learning.learning import fit, predict, segment_loss, to_safetensors
from streams.learning.onnx_model import OnnxModel
from streams.learning.teacher import teacher_of
from tests.rig.unwrap import unwrap

TINY = "tests/rig/made_up/tiny_task.py:task"


class Runs:
    """A pickle of it would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/tidewheel-was-run",)


def numpy_state(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def trained(task: Task) -> nn.Module:
    """A model that is better than the first one: it has seen the fleet's machines."""
    from federation.bootstrap.dataset import segments_of_device, stack

    known = stack(task, [segments_of_device(task, name) for name in ("d0", "d1", "lab-1")])
    model = task.build_model()
    loss = segment_loss(task, model, known.segments, known.labels)
    fit(model, len(known.labels), loss, epochs=15, batch_size=32, learning_rate=3e-3, seed=1,
        optimizer="adamw")  # fmt: skip
    return model.eval()


@pytest.fixture(scope="module")
def better() -> nn.Module:
    from streams.contract.task import load_task

    return trained(load_task(TINY))


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
    cases: dict[str, object] = {
        "lacks 0.weight": {n: t for n, t in state.items() if n != "0.weight"},
        "has also head.weight": {**state, "head.weight": torch.zeros(3)},
        "has 0.weight (1, 2), not": {**state, "0.weight": torch.zeros(1, 2)},
        "not finite": bad,
        "holds list, not a state dict": [1, 2],
        "no weights that can be read": Runs(),
    }
    for text, value in cases.items():
        path = tmp_path / "w.pt"
        if isinstance(value, Runs):
            path.write_bytes(pickle.dumps(value))
        else:
            torch.save(value, path)
        with pytest.raises(UsageError, match=r"w\.pt") as raised:
            loaded(tiny.build_model(), read_weights(path)[0], path)
        assert text in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not Path("/tmp/tidewheel-was-run").exists()


def test_the_first_model_has_the_weights_of_a_file_and_pilots_need_no_labels(
    tiny: Task, key: Ed25519PrivateKey, tmp_path: Path, better: nn.Module
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(to_safetensors(better.state_dict()))

    def unlabelled(device: str) -> list[Reading]:
        known = device.startswith("held")
        return [r if known else r._replace(label=None) for r in tiny.readings(device)]

    task = replace(tiny, first_model=path, build_teacher=None, readings=unlabelled)
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


def exported(tiny: Task, model: nn.Module, path: Path, batch: int | None = None) -> Path:
    """A graph as people export one: of a fixed batch, or of any."""
    graph = complete(export_graph(tiny, model), numpy_state(model))
    if batch is not None:
        for each in (*graph.graph.input, *graph.graph.output):
            each.type.tensor_type.shape.dim[0].dim_value = batch
    path.write_bytes(graph.SerializeToString())
    return path


class OneRow(nn.Module):
    """Answers one row at a time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(x.view(1, 2, 20))
        return found


class Named(OneRow):
    """Takes two inputs and gives two outputs."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return x, self.model(x * scale)


FORMS = {
    "onnx": exported,
    "onnx of 1 row": lambda task, model, path: exported(task, model, path, 1),
    "onnx of 4 rows": lambda task, model, path: exported(task, model, path, 4),
    "script": lambda _, model, path: jit(model, path),
    "trace": lambda _, model, path: jit(model, path, torch.zeros(3, 2, 20)),
    "trace of 1 row": lambda _, model, path: jit(OneRow(model), path, torch.zeros(1, 2, 20)),
    "frozen": lambda _, model, path: jit(model, path, change=torch.jit.freeze),
}


def jit(
    model: nn.Module, path: Path, example: torch.Tensor | None = None,
    change: Callable[[Any], Any] = lambda script: script,
) -> Path:  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will do without it one day
        made = torch.jit.script(model) if example is None else torch.jit.trace(model, example)
        torch.jit.save(change(made), path)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_graph_answers_on_device_and_as_teacher_as_its_module_does(
    tiny: Task, key: Ed25519PrivateKey, tmp_path: Path, better: nn.Module, form: str
) -> None:
    path = FORMS[form](tiny, better, tmp_path / "model.file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    file = OnnxFile(path, before=lambda x: x * 2.0, after=lambda found: next(iter(found.values())))
    task = replace(tiny, build_model=file, build_teacher=OnnxFile(path))
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


# --- files of TorchScript -------------------------------------------------------------------------


def test_inputs_and_outputs_of_torchscript_go_by_their_names(
    tiny: Task, tmp_path: Path, better: nn.Module
) -> None:
    path = jit(Named(better), tmp_path / "m.pt")

    def before(segments: np.ndarray) -> dict[str, np.ndarray]:
        return {"scale": np.full((len(segments), 1, 1), 2, np.float32), "x": segments}

    file = OnnxFile(path, before, lambda found: found["output_1"])
    rows = np.random.default_rng(1).normal(0, 1, (7, *tiny.segment_shape)).astype(np.float32)
    found = predict(read_graph(tiny, file), rows)
    np.testing.assert_allclose(found, predict(better, 2 * rows), atol=1e-4)
    with pytest.raises(TaskError, match="its inputs are x, scale, not x"):
        read_graph(tiny, OnnxFile(path))


class Hostile(nn.Module):
    """Writes a file named by `place`, where one of its parts is run."""

    place: str

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Saves(Hostile):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > -1e9:
            torch.save(x, self.place)
        return x


class Maps(Hostile):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_file(self.place, shared=True, size=8) + x.sum()


class AtRead(Hostile):
    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.place, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.place, self.training = state
        torch.save(torch.zeros(1), self.place)


class Forks(Hostile):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.jit.wait(torch.jit.fork(torch.relu, x))
        return found


class Quantized(Hostile):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized.add(x, x, 1.0, 0)  # type: ignore[no-any-return]


def packed(place: str) -> nn.Module:
    """Has an object of a class of torch's own, in C++."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = nn.Sequential(Hostile(place), nn.Linear(20, 3))
        found: nn.Module = torch.ao.quantization.quantize_dynamic(whole)
    return found


def hooked(place: str) -> nn.Module:
    def save(module: Hostile, x: tuple[torch.Tensor]) -> None:
        torch.save(x[0], module.place)

    model = Hostile(place)
    model.register_forward_pre_hook(save)
    return model


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (Saves, "the operator aten::save is not allowed"),
        (Maps, "the operator aten::from_file is not allowed"),
        (AtRead, "has what runs when it is read: __setstate__"),
        (packed, "has what runs when it is read: "),
        (hooked, "it has hooks"),
        (Forks, "the operator prim::fork is not allowed"),
        (Quantized, "the operator quantized::add is not allowed"),
        (Hostile, r"answers \(2, 2, 20\) to segments"),
    ],
    ids=lambda value: getattr(value, "__name__", " "),
)
def test_a_hostile_torchscript_is_refused_before_anything_of_it_runs(
    tiny: Task, tmp_path: Path, build: Callable[[str], nn.Module], text: str
) -> None:
    place = tmp_path / "written"
    path = jit(build(str(place)).eval(), tmp_path / "m.pt")
    place.unlink(missing_ok=True)  # by __setstate__ as well as by what made the file
    with pytest.raises(TaskError, match=text) as raised:
        read_graph(tiny, OnnxFile(path))
    assert "\n" not in str(raised.value)
    assert not place.exists()


@pytest.mark.parametrize("what", ["a pickle", "weights", "a zip", "no zip", "two of a name"])
def test_what_is_no_torchscript_is_refused_in_a_line(
    tiny: Task, tmp_path: Path, what: str, better: nn.Module
) -> None:
    path = tmp_path / "m.pt"
    if what in ("a pickle", "weights"):
        torch.save(Runs() if what == "a pickle" else better.state_dict(), path)
    elif what == "two of a name":
        jit(better, path)
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in [each for each in archive.namelist() if each.endswith(".py")]:
                archive.writestr(name, "def __setstate__(self): pass")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Runs()))
        if what == "no zip":
            path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(TaskError, match=r"m\.pt is no TorchScript that can be used: .+") as raised:
        read_graph(tiny, OnnxFile(path))
    assert "\n" not in str(raised.value)
    assert not Path("/tmp/tidewheel-was-run").exists()


# --- into a fleet that runs -----------------------------------------------------------------------


def test_a_better_model_waits_for_its_canary_and_a_worse_one_is_refused(
    tiny: Task, key: Ed25519PrivateKey, registry: Registry, tmp_path: Path, better: nn.Module
) -> None:
    path, base = tmp_path / "b.safetensors", unwrap(registry.serving())
    tiny = replace(tiny, may_trade_classes=True)  # the first one names one class nearly always
    path.write_bytes(to_safetensors(better.state_dict()))
    verdict, model = import_candidate(tiny, registry, key, path)
    assert verdict.promote, verdict.reason
    made = registry.load(unwrap(model))
    assert (made.manifest.base, made.manifest.run) == (base.model, None)
    assert made.manifest.source.startswith("b.safetensors sha256:")
    assert made.files[GRAPH] == base.files[GRAPH]
    OnnxModel(tiny, made)  # its self-test
    last = registry.decisions()[-1]
    assert (last.kind, last.model) == ("candidate", model)
    assert unwrap(registry.serving()).model == base.model
    torch.manual_seed(9)
    path.write_bytes(to_safetensors(tiny.build_model().state_dict()))
    before = registry.models()
    verdict, model = import_candidate(tiny, registry, key, path)
    assert (verdict.promote, model, registry.models()) == (False, None, before)


@pytest.mark.parametrize("point", ["import-step-1:1", "import-step-2:1"])
def test_killed_at_a_step_nothing_is_offered_and_the_import_can_be_repeated(
    tiny: Task, key: Ed25519PrivateKey, registry: Registry, tmp_path: Path, better: nn.Module,
    point: str,
) -> None:  # fmt: skip
    (tmp_path / "b.safetensors").write_bytes(to_safetensors(better.state_dict()))
    words = [sys.executable, "-m", "compose.cli.main", "models", "import"]
    words += [str(Path(TINY).resolve()), "b.safetensors", "--state", ".", "--registry", "registry"]
    environ = {**os.environ, "TIDEWHEEL_FAILPOINT": point, "PYTHONPATH": str(Path.cwd())}
    killed = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [d.kind for d in registry.decisions()] == ["served"]
    del environ["TIDEWHEEL_FAILPOINT"]
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    again = Registry(registry.where, tiny.name, tiny.version, [key.public_key()])
    assert again.decisions()[-1].model == done.stdout.split()[0]


@pytest.mark.parametrize("form", ["onnx", "script"])
def test_another_graph_is_a_candidate_and_another_teacher(
    tiny: Task, key: Ed25519PrivateKey, tmp_path: Path, better: nn.Module, form: str
) -> None:
    torch.manual_seed(3)
    first = exported(tiny, tiny.build_model(), tmp_path / "first.onnx")
    second = FORMS[form](tiny, better, tmp_path / "second.file")
    task = replace(tiny, build_model=OnnxFile(first), build_teacher=None, may_trade_classes=True)
    registry = Registry(tmp_path / "registry", task.name, task.version, [key.public_key()])
    prepare(TINY, task, registry, key, tmp_path / "cache")
    verdict, model = import_candidate(task, registry, key, second)
    assert verdict.promote, verdict.reason
    rows = np.random.default_rng(1).normal(0, 1, (4, *task.segment_shape)).astype(np.float32)
    answers = OnnxModel(task, registry.load(unwrap(model))).run(rows)
    np.testing.assert_allclose(answers, predict(better, rows), atol=1e-4)
    teacher = teacher_of(task, replace_teacher(task, registry, key, second), "teacher")
    np.testing.assert_allclose(teacher.score([rows])[0], predict(better, rows), atol=1e-4)
