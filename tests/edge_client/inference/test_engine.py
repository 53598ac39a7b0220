"""The device's answers are torch's answers, whichever weights are in the graph."""

from collections.abc import Callable

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from edge_client.inference.engine import Engine
from federation.bootstrap.onnx_export import export_graph
from streams.contract.artifact import GRAPH, PROBE, WEIGHTS, Artifact, unpack
from streams.contract.errors import ArtifactError
from streams.learning.learning import predict
from tests.rig.made_up.models import artifact, plain, segments, tiny, with_batch_norm

KEY = Ed25519PrivateKey.generate()


def verified(data: bytes) -> Artifact:
    return unpack(data, [KEY.public_key()], task=tiny.name, task_version=tiny.version)


@pytest.mark.parametrize("build", [plain, with_batch_norm])
def test_it_answers_as_torch_also_after_the_weights_were_swapped(
    build: Callable[[int], nn.Module],
) -> None:
    first, second = build(1), build(2)
    graph = export_graph(tiny, first)
    inputs = segments(50)
    assert np.abs(predict(first, inputs) - predict(second, inputs)).max() > 0.01
    for number, model in enumerate((first, second, first), 1):
        engine = Engine(tiny, verified(artifact(KEY, model, number, graph=graph)))
        answers = np.stack([engine.run(segment) for segment in inputs])
        assert answers.dtype == np.float32
        np.testing.assert_allclose(answers, predict(model, inputs), atol=1e-4)


def altered(**files: bytes) -> Artifact:
    """A sound artifact with some of its files replaced after it was verified."""
    sound = verified(artifact(KEY, plain(1)))
    names = {"weights": WEIGHTS, "graph": GRAPH, "probe": PROBE}
    replaced = {names[name]: data for name, data in files.items()}
    return Artifact(sound.manifest, sound.digest, {**sound.files, **replaced})


@pytest.mark.parametrize("what", ["no graph", "no weights", "not finite", "shape", "dtype"])
def test_what_is_no_model_of_the_task_is_refused(what: str) -> None:
    weights = dict(safetensors.numpy.load(altered().files[WEIGHTS]))
    if what == "not finite":
        weights["4.bias"] = np.full_like(weights["4.bias"], np.nan)
    elif what == "shape":
        weights["4.weight"] = np.zeros((5, 8), np.float32)
    elif what == "dtype":  # left out, the graph's own would answer in its place
        weights["4.bias"] = weights["4.bias"].astype(np.float64)
    broken = {
        "no graph": {"graph": b"not onnx"},
        "no weights": {"weights": b"not safetensors"},
    }
    files = broken.get(what, {"weights": safetensors.numpy.save(weights)})
    with pytest.raises(ArtifactError) as caught:
        Engine(tiny, altered(**files))
    assert caught.value.reason == "not-runnable"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["weight", "4.weigh", ".bias", "0.weight0"])
def test_a_weight_whose_name_is_part_of_another_is_not_the_graphs(name: str) -> None:
    weights = safetensors.numpy.load(altered().files[WEIGHTS])
    foreign = safetensors.numpy.save({**weights, name: np.ones(3, np.float32)})
    with pytest.raises(ArtifactError, match=f"the graph has no weight {name}"):
        Engine(tiny, altered(weights=foreign))


def test_a_tensor_that_is_missing_is_refused() -> None:
    """The graph holds no weights that could take its place."""
    graph = export_graph(tiny, plain(1))
    for name, tensor in plain(2).state_dict().items():
        data = artifact(KEY, plain(2), graph=graph, lacking=(name,))
        with pytest.raises(ArtifactError, match=f"initializer: {name}") as caught:
            Engine(tiny, verified(data))
        assert caught.value.reason == "not-runnable"
        assert tensor.is_floating_point()


def test_another_order_of_summing_is_no_failed_probe_and_one_small_step_is() -> None:
    sound = altered()
    probe = safetensors.numpy.load(sound.files[PROBE])
    for factor, passes in ((1 + 2e-6, True), (1 + 1e-3, False)):
        outputs = probe["outputs"] * np.float32(factor)
        moved = altered(probe=safetensors.numpy.save({**probe, "outputs": outputs}))
        if passes:
            Engine(tiny, moved)
        else:
            with pytest.raises(ArtifactError, match="self-test"):
                Engine(tiny, moved)


INPUTS, OUTPUTS = segments(2), np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"inputs": INPUTS},
        {"inputs": INPUTS[:0], "outputs": OUTPUTS[:0]},
        {"inputs": INPUTS, "outputs": OUTPUTS[:1]},
        {"inputs": INPUTS[:, :1], "outputs": OUTPUTS},
        {"inputs": INPUTS.astype(np.float64), "outputs": OUTPUTS},
        {"inputs": INPUTS, "outputs": OUTPUTS.astype(np.int32)},
        {"inputs": INPUTS, "outputs": np.full_like(OUTPUTS, np.nan)},
        {"inputs": np.full_like(INPUTS, np.inf), "outputs": OUTPUTS},
        {"inputs": np.array(1, np.float32), "outputs": OUTPUTS},
        None,
    ],
)
def test_a_probe_that_is_none_is_a_failed_self_test(tensors: dict[str, np.ndarray] | None) -> None:
    data = b"no safetensors" if tensors is None else safetensors.numpy.save(tensors)
    with pytest.raises(ArtifactError) as caught:
        Engine(tiny, altered(probe=data))
    assert caught.value.reason == "self-test"
    assert "\n" not in str(caught.value)


def test_an_artifact_without_a_probe_is_refused() -> None:
    sound = altered()
    files = {name: data for name, data in sound.files.items() if name != PROBE}
    with pytest.raises(ArtifactError, match=r"self-test: .* has no probe"):
        Engine(tiny, Artifact(sound.manifest, sound.digest, files))


def test_a_model_with_other_outputs_is_refused() -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(40, 4)).eval()
    with pytest.raises(ArtifactError, match=r"answers \(4,\)"):
        Engine(tiny, verified(artifact(KEY, wide)))
