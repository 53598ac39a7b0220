"""What an extra brings, by the metadata of what is installed here: no network is asked."""

import pytest

from tests.rig.processes.distributions import needed

TORCH, FAUST, FLOWER = "torch", "faust-streaming", "flwr"
STORE = {"deltalake", "duckdb", "pandas", "onnx", "onnxscript"}


def test_a_device_that_does_not_train_gets_no_torch_no_faust_and_no_flower() -> None:
    brought = needed("edge").keys()
    assert "onnxruntime" in brought
    assert not brought & {TORCH, FAUST, FLOWER, *STORE}


def test_a_device_that_trains_gets_torch_and_flower_and_no_faust() -> None:
    brought = needed("edge-train").keys()
    assert {"onnxruntime", TORCH, FLOWER} <= brought
    assert not brought & {FAUST, *STORE}


def test_the_worker_gets_neither_flower_nor_onnxruntime() -> None:
    brought = needed("worker").keys()
    assert {TORCH, FAUST} <= brought
    assert not brought & {FLOWER, "onnxruntime"}


@pytest.mark.parametrize("extra", ["federation", "embedded", "all", "dev"])
def test_what_an_extra_names_is_found(extra: str) -> None:
    assert needed(extra)
