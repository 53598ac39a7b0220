"""What `prepare` says of the models that it makes; what `prepare --from` makes of a file, and what
it and `up` say of it afterwards."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from compose.launcher.preparation import CHANGED, make_models
from compose.launcher.state_dir import StateDir
from federation.registry.registry import Registry
from streams.contract.artifact import WEIGHTS
from streams.contract.errors import UsageError
from streams.contract.task import Reading, load_task
from streams.runtime.trust import load_public_key
from tests.compose.cli.test_cli import TINY


def test_a_given_model_is_made_once_and_another_file_is_not_taken_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEWHEEL_CACHE", str(tmp_path / "cache"))
    task, layout = load_task(TINY), StateDir(tmp_path / "state")
    torch.manual_seed(4)
    given = task.build_model().state_dict()  # type: ignore[operator]
    safetensors.torch.save_file(given, file := tmp_path / "given.safetensors")
    said: list[str] = []
    model = make_models(TINY, task, layout, said.append, file)
    assert any(f"{model} is of given.safetensors; the teacher made in" in line for line in said)
    registry = Registry(layout.registry, "tiny", 1, [load_public_key(layout.public_key)])
    kept = safetensors.torch.load(registry.load(model).files[WEIGHTS])
    assert all(torch.equal(kept[name], value) for name, value in given.items())
    said.clear()
    assert make_models(TINY, task, layout, said.append) == model  # as `up` does it
    assert CHANGED not in said
    with pytest.raises(UsageError, match=f"serves {model} already: .* models import"):
        make_models(TINY, task, layout, said.append, file)


def test_a_fleet_without_labels_is_not_said_to_be_at_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose labels come by `outcomes`. The teacher is better where there are labels."""
    tiny = load_task(TINY)

    def readings(device: str) -> Iterator[Reading]:
        for reading in tiny.readings(device):
            yield reading._replace(label=None) if device.startswith("d") else reading

    monkeypatch.setenv("TIDEWHEEL_CACHE", str(tmp_path / "cache"))
    task = replace(tiny, readings=readings)
    for how in ("trained", "from the cache"):
        said: list[str] = []
        layout = StateDir(tmp_path / how)
        make_models(TINY, task, layout, said.append)
        assert f"the teacher {how} in" in said[-3]
        assert said[-2:-1] == [
            "          accuracy on the fleet: not measured, there are no readings with labels for "
            "which it is defined"
        ]
        assert "on all segments of held-out devices 0." in said[-1]
        registry = Registry(layout.registry, "tiny", 1, [load_public_key(layout.public_key)])
        teacher = registry.verify(registry.read_teacher(), "teacher")
        assert teacher.manifest.metrics.keys() == {"teacher_held_out"}


def test_a_live_fleet_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its readings never end. The others' are recordings, and the teacher is compared on them."""
    tiny = load_task(TINY)

    def readings(device: str) -> Iterator[Reading]:
        if device.startswith("d"):
            raise AssertionError(f"the sensor of {device} is read")
        return tiny.readings(device)

    monkeypatch.setenv("TIDEWHEEL_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    task = replace(tiny, readings=readings, source="live")
    make_models(TINY, task, StateDir(tmp_path / "state"), said.append)
    assert said[-2] == "          accuracy on the fleet: not measured, its readings are live"
    assert "on all segments of held-out devices 0." in said[-1]
