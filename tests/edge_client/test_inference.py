"""The device's answers are torch's answers, whichever weights are in the graph."""

from collections.abc import Callable

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from edge_client.inference import Engine
from federation.export import export_graph
from streams.contract.artifact import GRAPH, WEIGHTS, Artifact, unpack
from streams.contract.errors import ArtifactError
from streams.contract.learning import predict
from tests.edge_client.models import artifact, plain, segments, tiny, with_batch_norm

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


def test_two_versions_answer_side_by_side() -> None:
    """A version that is being replaced still answers with its own weights."""
    models = [with_batch_norm(1), with_batch_norm(2)]
    graph = export_graph(tiny, models[0])
    engines = [
        Engine(tiny, verified(artifact(KEY, model, i, graph=graph)))
        for i, model in enumerate(models, 1)
    ]
    for segment in segments(20):
        for engine, model in zip(engines, models, strict=True):
            expected = predict(model, segment[None])[0]
            np.testing.assert_allclose(engine.run(segment), expected, atol=1e-4)


def altered(**files: bytes) -> Artifact:
    """A sound artifact with some of its files replaced after it was verified."""
    sound = verified(artifact(KEY, plain(1)))
    names = {"weights": WEIGHTS, "graph": GRAPH}
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


def test_a_model_with_other_outputs_is_refused() -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(40, 4)).eval()
    with pytest.raises(ArtifactError, match=r"answers \(4,\)"):
        Engine(tiny, verified(artifact(KEY, wide)))
