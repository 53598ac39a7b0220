"""Files of TorchScript: they answer as ONNX, or are refused before anything of them runs."""

import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from federation.bootstrap.onnx_export import read_graph
from streams.contract.errors import TaskError
from streams.contract.task import OnnxFile, Task
from streams.learning.learning import predict
from tests.rig.made_up.model_files import OneRow, Runs, jit


class Named(OneRow):
    """Takes two inputs and gives two outputs."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return x, self.model(x * scale)


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
    match = "its inputs are x, scale; OnnxFile's `before` must give an array for each, now there is"
    with pytest.raises(TaskError, match=match):
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
