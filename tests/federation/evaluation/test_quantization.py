"""Versions that answer in int8: made at release, judged by the gate, run by devices."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.bootstrap.initial_model import prepare
from federation.evaluation.accuracy import HeldOut
from federation.evaluation.evidence import CandidateEvaluation
from federation.evaluation.quantization import Quantizer, complete, run_graph
from federation.registry.registry import CALIBRATION, HELD_OUT, Registry
from streams.contract.artifact import (
    GRAPH,
    INT8,
    PROBE,
    WEIGHTS,
    Artifact,
    pack,
    unpack,
    without_float,
)
from streams.contract.errors import ArtifactError, TaskError
from streams.contract.task import OnnxFile, Task
from streams.contract.weights import delta
from streams.learning.input_adapter import BIAS, WEIGHT
from streams.learning.onnx_model import OnnxModel, answering, int8_graph
from tests.rig.made_up.model_files import few
from tests.rig.unwrap import unwrap

TINY = "tests/rig/made_up/tiny_task.py:task"
KEY = Ed25519PrivateKey.from_private_bytes(b"q" * 32)
ROWS = np.random.default_rng(1).normal(0, 1, (7, 2, 20)).astype(np.float32)


def wide() -> torch.nn.Module:
    """With enough weights that a quarter of their bytes is less than the graph's."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv1d(2, 32, 5, bias=False), torch.nn.BatchNorm1d(32), torch.nn.ReLU(),
        torch.nn.Conv1d(32, 64, 5), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(64 * 12, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Registry]:
    from streams.contract.task import load_task

    task = replace(load_task(TINY), quantize="int8", build_model=wide)
    folder = tmp_path_factory.mktemp("learned")
    found = Registry(folder / "registry", task.name, task.version, [KEY.public_key()])
    prepare(TINY, task, found, KEY, folder / "cache")
    return task, found


def weights_of(artifact: Artifact) -> dict[str, np.ndarray]:
    return safetensors.numpy.load(artifact.files[WEIGHTS])


def read(task: Task, data: bytes) -> Artifact:
    return unpack(data, [KEY.public_key()], task=task.name, task_version=task.version)


def test_a_quantized_version_answers_nearly_as_in_float_in_a_third_of_its_bytes(
    learned: tuple[Task, Registry],
) -> None:
    task, registry = learned
    serving = unwrap(registry.serving())
    floats = run_graph(serving.files[GRAPH], ROWS, weights_of(serving))
    answers = OnnxModel(task, serving).run(ROWS)
    off = np.abs(answers - floats).max() / np.abs(floats).max()
    assert 0 < off < 0.2
    np.testing.assert_array_equal(answers, run_graph(int8_graph(serving.files[INT8]), ROWS))
    probe = safetensors.numpy.load(serving.files[PROBE])
    np.testing.assert_array_equal(
        probe["outputs"], run_graph(int8_graph(serving.files[INT8]), probe["inputs"])
    )
    assert len(serving.files[INT8]) < 0.35 * len(serving.files[WEIGHTS])


def test_a_device_that_does_not_train_gets_the_version_without_its_floats(
    learned: tuple[Task, Registry],
) -> None:
    task, registry = learned
    data = registry.read(unwrap(registry.serving()).model)
    whole, part = read(task, data), read(task, without_float(data))
    assert part.model == whole.model
    assert set(whole.files) - set(part.files) == {WEIGHTS, GRAPH}
    np.testing.assert_array_equal(OnnxModel(task, part).run(ROWS), OnnxModel(task, whole).run(ROWS))
    for cut in (len(without_float(data)) - 1, len(without_float(data)) + 1):
        with pytest.raises(ArtifactError, match="truncated"):
            read(task, data[:cut])
    with pytest.raises(ArtifactError, match="delta"):  # a delta needs the floats of its base
        delta.apply(delta.make(data, whole.files), part.files, [KEY.public_key()])


def test_an_input_adapter_stands_before_the_quantized_graph(
    learned: tuple[Task, Registry],
) -> None:
    task, registry = learned
    serving = unwrap(registry.serving())
    weight, bias = np.array([[0, 2], [1, 0]], np.float32), np.array([0.5, -1], np.float32)
    adapter = safetensors.numpy.save({WEIGHT: weight, BIAS: bias})
    expected = OnnxModel(task, serving).run(weight @ ROWS + bias[:, None])
    np.testing.assert_array_equal(OnnxModel(task, serving, adapter).run(ROWS), expected)


def test_the_version_before_answers_in_int8_and_a_copy_in_float(
    learned: tuple[Task, Registry],
) -> None:
    task, registry = learned
    serving = unwrap(registry.serving())
    other = {n: np.zeros_like(value) for n, value in weights_of(serving).items()}
    files = {**serving.files, INT8: b"of another version"}
    later = read(task, pack(serving.manifest, files, KEY))
    np.testing.assert_array_equal(
        OnnxModel(task, later, answering(serving)).run(ROWS), OnnxModel(task, serving).run(ROWS)
    )
    copy = OnnxModel(task, serving, safetensors.numpy.save(other))
    np.testing.assert_array_equal(copy.run(ROWS), 0)


def test_a_version_whose_graph_is_anothers_fails_its_self_test(
    learned: tuple[Task, Registry],
) -> None:
    task, registry = learned
    serving = unwrap(registry.serving())
    other = {name: np.flip(value).copy() for name, value in weights_of(serving).items()}
    int8 = unwrap(
        Quantizer.of(task, registry.central(CALIBRATION)).int8(serving.files[GRAPH], other)
    )
    with pytest.raises(ArtifactError, match="self-test"):
        OnnxModel(task, read(task, pack(serving.manifest, {**serving.files, INT8: int8}, KEY)))


def test_the_gate_judges_what_answers(learned: tuple[Task, Registry]) -> None:
    task, registry = learned
    serving = unwrap(registry.serving())
    first = weights_of(serving)
    held_out = HeldOut.decode(registry.central(HELD_OUT), task)
    quantizer = Quantizer.of(task, registry.central(CALIBRATION), serving.files)
    assert quantizer.int8(serving.files[GRAPH], first) is serving.files[INT8]
    other = {name: np.asarray(value / 2, value.dtype) for name, value in first.items()}
    evaluation = CandidateEvaluation(task, serving, held_out, quantizer=quantizer)
    central = evaluation.central(other)
    int8 = unwrap(quantizer.int8(serving.files[GRAPH], other))
    answers = task.answers(run_graph(int8_graph(int8), held_out.segments))
    assert central.value == pytest.approx((answers == held_out.labels[:, 0]).mean())
    released = quantizer.release({**serving.files, WEIGHTS: b"theirs"}, other)
    assert (released[INT8], released[WEIGHTS]) == (int8, b"theirs")


def test_a_version_of_a_task_that_is_not_quantized_any_more_answers_in_float(
    learned: tuple[Task, Registry],
) -> None:
    task, registry = learned
    serving = unwrap(registry.serving())
    first = weights_of(serving)
    quantizer = Quantizer.of(replace(task, quantize=""), None, serving.files)
    assert quantizer.int8(serving.files[GRAPH], first) == serving.files[INT8]
    other = {name: np.asarray(value / 2, value.dtype) for name, value in first.items()}
    released = quantizer.release(serving.files, other)
    assert INT8 not in released
    OnnxModel(replace(task, quantize=""), read(task, pack(serving.manifest, {
        **released, WEIGHTS: safetensors.numpy.save(other)}, KEY)))  # fmt: skip


def halved(segments: np.ndarray) -> np.ndarray:
    return segments / 2


@pytest.mark.parametrize("before", [None, halved])
@pytest.mark.parametrize("batch", [None, 4])
def test_a_graph_that_was_made_elsewhere_is_quantized_behind_its_functions(
    learned: tuple[Task, Registry], tmp_path: Path, batch: int | None,
    before: Callable[[np.ndarray], np.ndarray] | None,
) -> None:  # fmt: skip
    task, registry = learned
    serving = unwrap(registry.serving())
    graph = complete(serving.files[GRAPH], weights_of(serving))
    if batch is not None:
        for each in (*graph.graph.input, *graph.graph.output):
            each.type.tensor_type.shape.dim[0].dim_value = batch
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    given = OnnxFile(tmp_path / "model.onnx", before)
    foreign = replace(few(task), build_model=given, build_teacher=None)
    place = Registry(tmp_path / "registry", task.name, task.version, [KEY.public_key()])
    prepare(TINY, foreign, place, KEY, tmp_path / "cache")
    made = unwrap(place.serving())
    rows = ROWS if before is None else before(ROWS)
    floats = run_graph(serving.files[GRAPH], rows, weights_of(serving))
    off = np.abs(OnnxModel(foreign, made).run(ROWS) - floats).max() / np.abs(floats).max()
    assert 0 < off < 0.2
    assert len(without_float(registry.read(serving.model))) < len(registry.read(serving.model))


def test_what_cannot_be_quantized_is_said(tiny: Task, learned: tuple[Task, Registry]) -> None:
    task, registry = learned
    serving = unwrap(registry.serving())
    with pytest.raises(TaskError, match="no segments of pilots; run `tidewheel prepare`"):
        Quantizer.of(task, None).int8(serving.files[GRAPH], weights_of(serving))
    with pytest.raises(TaskError, match="quantize must be '' or 'int8'"):
        replace(tiny, quantize="int4")  # type: ignore[arg-type]


def test_a_delta_of_the_quantized_graph_has_what_changed(learned: tuple[Task, Registry]) -> None:
    """As after a run in which a head learns, or all weights a little."""
    task, registry = learned
    serving = unwrap(registry.serving())
    first, quantizer = weights_of(serving), Quantizer.of(task, registry.central(CALIBRATION))
    data = registry.read(serving.model)
    for change, most in ({"8.weight": 1.5}, 0.05), (dict.fromkeys(first, 1.01), 0.5):
        other = {n: np.asarray(v * change.get(n, 1), v.dtype) for n, v in first.items()}
        weights = {WEIGHTS: safetensors.numpy.save(other)}
        files = quantizer.release({**serving.files, **weights}, other)
        made = pack(serving.manifest, files, KEY)
        small = delta.make(made, {**serving.files, WEIGHTS: weights[WEIGHTS]})
        assert len(small) < most * len(files[INT8])
        whole = {**serving.files, WEIGHTS: weights[WEIGHTS]}
        assert delta.apply(small, whole, [KEY.public_key()]) == made
    assert len(data) > len(without_float(data))
